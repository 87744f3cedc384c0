-- How many dependencies of a task are unmet is counted from its edges, and no longer written down with the task: programs before
-- this one would take what they find there for true, and refuse the database by this number.
SELECT 1;
