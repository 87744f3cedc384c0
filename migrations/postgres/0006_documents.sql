-- Documents leave out what is empty: programs before this one cannot read that, and refuse the database by this number.
SELECT 1;
