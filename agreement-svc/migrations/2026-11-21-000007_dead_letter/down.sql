DROP INDEX notification_dead;
