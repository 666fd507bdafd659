-- REVISION:HASH of the last event that was applied, which proves to agreement-svc that its history is the one
-- that was followed. It counts only while REVISION is that of the row: whoever moves the row without it leaves
-- nothing to prove. NULL where it is not known.
ALTER TABLE follower ADD COLUMN head TEXT;
