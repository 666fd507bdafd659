-- Each gated transaction asks whether the withdrawal of the acceptance that it rests on was applied.
CREATE INDEX withdrawal_by_acceptance ON withdrawal (acceptance_id);
