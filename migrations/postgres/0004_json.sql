-- Documents are kept as they were written. Nothing is looked up in them that would be worth taking each one apart when it is
-- written; that took Postgres longer than the rest of a batch.
ALTER TABLE contracts ALTER COLUMN doc TYPE json;
ALTER TABLE classes ALTER COLUMN requirements TYPE json;
ALTER TABLE tasks ALTER COLUMN spec TYPE json, ALTER COLUMN doc TYPE json;
ALTER TABLE attempts ALTER COLUMN doc TYPE json;
ALTER TABLE daemons ALTER COLUMN doc TYPE json;
ALTER TABLE commands ALTER COLUMN doc TYPE json;
ALTER TABLE events ALTER COLUMN doc TYPE json;
ALTER TABLE requests ALTER COLUMN doc TYPE json;
ALTER TABLE checkpoints ALTER COLUMN doc TYPE json;
