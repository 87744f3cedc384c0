-- Events are in the order of their times: what is old is found by their sequence, and each is in one index less.
DROP INDEX events_by_time;
