-- What keeps a checkpoint from being forgotten is found by index: those that build on it, and the task that goes on from it.
ALTER TABLE checkpoints ADD COLUMN base blob;  -- the one it builds on; null for a whole one
CREATE INDEX checkpoints_by_base ON checkpoints (base) WHERE base IS NOT NULL;
ALTER TABLE tasks ADD COLUMN checkpoint blob;  -- what its next attempt goes on from; null for nothing
CREATE INDEX tasks_by_checkpoint ON tasks (checkpoint) WHERE checkpoint IS NOT NULL;

-- Only output goes by its age; checkpoints and results would be walked over every hour.
DROP INDEX blobs_by_time;
CREATE INDEX blobs_by_time ON blobs (created) WHERE kind = 'output';
