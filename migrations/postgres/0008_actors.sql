-- Events leave out whose they are, which their contract says, and say in a word that their daemon said them: programs before this
-- one cannot read that, and refuse the database by this number.
SELECT 1;
