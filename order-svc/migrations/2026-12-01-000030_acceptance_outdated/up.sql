-- On an automatic renewal, whether the gate would have refused it to a user; NULL where that is not known.
ALTER TABLE subscription_change ADD COLUMN acceptance_outdated BOOLEAN;
