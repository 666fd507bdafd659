-- Answers are forgotten by age.
CREATE INDEX request_by_age ON request (answered_at);
