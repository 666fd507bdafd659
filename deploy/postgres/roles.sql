-- A role and a database for each service, made when the server starts for the first time. The passwords
-- are read from files, so that they stand in no environment and no log.
\set agreement_password `cat /secrets/agreement-svc.password`
\set order_password `cat /secrets/order-svc.password`
SET log_statement = 'none';
CREATE ROLE agreement LOGIN PASSWORD :'agreement_password';
CREATE ROLE orders LOGIN PASSWORD :'order_password';
CREATE DATABASE agreement OWNER agreement;
CREATE DATABASE orders OWNER orders;
-- A role enters its own database only; that is in pg_hba.conf, too.
REVOKE CONNECT ON DATABASE agreement, orders, postgres FROM PUBLIC;
