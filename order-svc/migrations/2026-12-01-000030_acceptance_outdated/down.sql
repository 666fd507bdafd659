ALTER TABLE subscription_change DROP COLUMN acceptance_outdated;
