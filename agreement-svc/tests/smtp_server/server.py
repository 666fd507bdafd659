"""A real mail server that misbehaves on demand.

Prints one line for each thing that happens, for a test to wait on: `listening PORT`, then for each
mail `accepted PATH` or what it did instead. Every mail that it took is written to the folder.
"""

import argparse
import asyncio
import itertools
import pathlib
import ssl

from aiosmtpd.smtp import SMTP, AuthResult

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument(
    "--plan",
    default="",
    help="what becomes of the first mails, in order: CODE (refused with it), hang, drop; the rest is accepted",
)
parser.add_argument("--certificate", nargs=2, metavar=("CHAIN", "KEY"))
parser.add_argument("--starttls", action="store_true", help="instead of TLS from the start")
parser.add_argument("--seconds", type=float, default=0, help="that it takes to accept each mail")
parser.add_argument("--login", help="NAME:PASSWORD that a client must present")
options = parser.parse_args()

plan = iter(filter(None, options.plan.split(",")))
numbers = itertools.count(1)


def tell(line):
    print(line, flush=True)


class Server(SMTP):
    async def smtp_DATA(self, arg):
        self.verdict = next(plan, "accept")
        if self.verdict == "hang":
            tell("hung")
            await asyncio.Event().wait()
        if self.verdict == "drop":
            await self.push("354 go on")
            await self._reader.readline()
            tell("dropped")
            self.transport.abort()
            return
        await super().smtp_DATA(arg)


class Handler:
    async def handle_DATA(self, server, session, envelope):
        name = f"{next(numbers)}.eml"
        if server.verdict != "accept":
            (options.folder / f"refused-{name}").write_bytes(envelope.content)
            tell(f"refused {options.folder}/refused-{name}")
            # What mail servers do: they quote the address.
            return f"{server.verdict} <{envelope.rcpt_tos[0]}> is not welcome here"
        await asyncio.sleep(options.seconds)
        (options.folder / name).write_bytes(envelope.content)
        tell(f"accepted {options.folder}/{name}")
        return "250 taken"


def authenticate(server, session, envelope, mechanism, data):
    name, password = options.login.split(":")
    is_right = (data.login, data.password) == (name.encode(), password.encode())
    # Not handled: the server is to answer.
    return AuthResult(success=is_right, handled=False)


async def main():
    tls = None
    if options.certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*options.certificate)

    def session():
        return Server(
            Handler(),
            hostname="localhost",
            enable_SMTPUTF8=False,
            tls_context=tls if options.starttls else None,
            require_starttls=options.starttls,
            authenticator=authenticate if options.login else None,
            auth_required=bool(options.login),
            auth_require_tls=options.starttls,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(session, "127.0.0.1", 0, ssl=None if options.starttls else tls)
    tell(f"listening {server.sockets[0].getsockname()[1]}")
    await server.serve_forever()


asyncio.run(main())
