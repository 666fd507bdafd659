ALTER TABLE relationship DROP COLUMN restores;
ALTER TABLE follower DROP COLUMN restores;
