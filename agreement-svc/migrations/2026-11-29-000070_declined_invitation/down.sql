DROP INDEX invitation_declined;
ALTER TABLE invitation DROP COLUMN decline_reason;
ALTER TABLE invitation DROP COLUMN declined_at;
