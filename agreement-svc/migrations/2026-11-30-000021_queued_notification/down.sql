DROP INDEX notification_queued;
