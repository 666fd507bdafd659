DROP INDEX request_by_age;
