-- A role and a database for each service, created when the server starts for the first time. The passwords
-- are read from files, so that no environment variable and no log contains them.
\set agreement_password `cat /secrets/agreement-svc.password`
\set order_password `cat /secrets/order-svc.password`
SET log_statement = 'none';
CREATE ROLE agreement LOGIN PASSWORD :'agreement_password';
CREATE ROLE orders LOGIN PASSWORD :'order_password';
CREATE DATABASE agreement OWNER agreement;
CREATE DATABASE orders OWNER orders;
-- A role connects to its own database only; pg_hba.conf says the same.
REVOKE CONNECT ON DATABASE agreement, orders, postgres FROM PUBLIC;
