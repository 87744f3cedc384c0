-- An order to start an attempt that is not answered stands in the attempt, and no longer among the commands: programs before this one
-- would not send it again, and refuse the database by this number.
SELECT 1;
