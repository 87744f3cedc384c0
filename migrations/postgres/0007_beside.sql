-- Documents leave out what is in a column beside them: programs before this one cannot read that, and refuse the database by
-- this number.
SELECT 1;
