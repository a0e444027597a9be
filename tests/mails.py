"""A mail server on this machine for tests: it keeps what it takes, and stumbles where it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import email
import email.policy
import ipaddress
import ssl
import threading
from dataclasses import dataclass, field

from aiosmtpd import smtp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from runlore import clock

USER, PASSWORD = "runlore", "correct-horse-battery"


@dataclass
class Box:
    """What arrived. `answers`: what a command (`MAIL`, `RCPT`, `DATA`) is answered in turn, instead of 250."""

    port: int = 0
    mails: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    answers: dict = field(default_factory=dict)

    def next_answer(self, command):
        self.asked.append(command)
        left = self.answers.get(command)
        return left.pop(0) if left else None


class _Handler:
    def __init__(self, box):
        self._box = box

    async def handle_MAIL(self, server, session, envelope, address, options):
        envelope.mail_from = address
        return self._box.next_answer("MAIL") or "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        answer = self._box.next_answer("RCPT")
        if answer is None:
            envelope.rcpt_tos.append(address)
        return answer or "250 OK"

    async def handle_DATA(self, server, session, envelope):
        answer = self._box.next_answer("DATA")
        if answer in ("hangs", "hangs up"):
            if answer == "hangs":
                await asyncio.Event().wait()
            server.transport.abort()
            return None
        if answer is not None:
            return answer
        made = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self._box.mails.append((envelope.mail_from, envelope.rcpt_tos, made))
        return "250 OK"


def _authenticated(server, session, envelope, mechanism, login):
    good = (login.login, login.password) == (USER.encode(), PASSWORD.encode())
    told = None if good else f"535 5.7.8 no: {login}"
    return smtp.AuthResult(success=good, handled=False, message=told)


@contextlib.contextmanager
def server(*, tls=None, login=False, **answers):
    """The server on a thread of its own, so commands that run a loop of theirs reach it, too."""
    box, loop, ready = Box(answers=answers), asyncio.new_event_loop(), threading.Event()

    def made():
        return smtp.SMTP(
            _Handler(box),
            hostname="mail.test",
            loop=loop,
            tls_context=tls,
            require_starttls=tls is not None,
            authenticator=_authenticated if login else None,
            auth_required=login,
            ident="test",
        )

    async def serving(done):
        listening = await loop.create_server(made, "127.0.0.1", 0)
        box.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await done.wait()
        listening.close()
        # Those that hang.
        rest = [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]
        for one in rest:
            one.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    done = asyncio.Event()

    def run():
        # Closed where it ran: whoever asked may be in a loop of their own.
        with contextlib.closing(loop):
            loop.run_until_complete(serving(done))
            loop.run_until_complete(loop.shutdown_asyncgens())

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    try:
        yield box
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(20)


def certificate(folder):
    """A certificate for 127.0.0.1 that signs itself: the server's context, and the file that vouches for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail.test")])
    now = clock.now()
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem, private = folder / "mail.pem", folder / "mail.key"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, private)
    return context, pem
