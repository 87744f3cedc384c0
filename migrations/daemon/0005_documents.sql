-- Documents leave out what is empty: programs before this one cannot read that, and refuse the journal by its number. Version 5
-- (PRAGMA user_version).
SELECT 1;
