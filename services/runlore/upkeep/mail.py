"""Mail: one message to one address, by the SMTP server of the settings. Off the path of a run.

`relay_of` says where mail goes (None: nowhere), `send` sends. It ends within `RUNLORE_SMTP_TIMEOUT_SECONDS` whatever
the server does, and tries again only while the server can not have taken the message: a second mail is worse than a
late one. What the server says is not repeated, but for its codes: it may quote what it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.headerregistry
import email.message
import email.policy
import email.utils
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from runlore import clock, errors

if TYPE_CHECKING:
    import aiosmtplib
    from pydantic import SecretStr

    from runlore.settings import Settings

TRIES_MAX = 3
PAUSE_SECONDS = 0.5
"""Before the second try; twice as long before each further one."""
QUIT_SECONDS = 1.0
ADDRESS_CHARS_MAX = 254
SUBJECT_CHARS_MAX = 200
TEXT_CHARS_MAX = 100_000

# As browsers check an address (HTML's `input type=email`): ASCII, so no server needs SMTPUTF8 for it.
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_HEADER = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ENHANCED = re.compile(r"\s*([245]\.\d{1,3}\.\d{1,3})\b")
_POLICY = email.policy.SMTP.clone(cte_type="7bit")
"""Lines end in CRLF, and what is not ASCII is encoded, so that every server takes it."""


@dataclass(frozen=True)
class Relay:
    """The SMTP server that takes our mail, and whom it comes from."""

    host: str
    port: int
    sender: str
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: str = ""
    password: SecretStr | None = None
    ca_file: str = ""
    timeout_seconds: float = 15.0


def relay_of(settings: Settings) -> Relay | None:
    """Where mail goes; None where nobody said. Raises `errors.InvalidInput`."""
    if not settings.smtp_host:
        return None
    return Relay(
        settings.smtp_host,
        settings.smtp_port,
        checked_address(settings.smtp_from),
        settings.smtp_security,
        settings.smtp_username,
        settings.smtp_password,
        settings.smtp_ca_file,
        settings.smtp_timeout_seconds,
    )


def checked_address(address: str) -> str:
    """One address, as mail can be sent to it. Raises `errors.InvalidInput`."""
    if len(address) > ADDRESS_CHARS_MAX or _ADDRESS.fullmatch(address) is None:
        raise errors.InvalidInput("it is no address that mail can be sent to")
    return address


def message(sender: str, *, to: str, subject: str, text: str) -> email.message.EmailMessage:
    """The message. Raises `errors.InvalidInput` for what would be another header, or another address."""
    if not subject.strip() or len(subject) > SUBJECT_CHARS_MAX or _HEADER.search(subject):
        raise errors.InvalidInput(f"a subject is one line of 1 to {SUBJECT_CHARS_MAX} characters")
    if len(text) > TEXT_CHARS_MAX:
        raise errors.InvalidInput(f"a mail has up to {TEXT_CHARS_MAX} characters")
    made = email.message.EmailMessage(policy=_POLICY)
    # As parsed addresses: nothing in one of them can become a second one.
    made["From"] = email.headerregistry.Address("Runlore", addr_spec=checked_address(sender))
    made["To"] = email.headerregistry.Address(addr_spec=checked_address(to))
    made["Subject"] = subject
    made["Date"] = email.utils.format_datetime(clock.now())
    made["Message-ID"] = f"<{clock.new_id()}@{_domain(sender)}>"
    # Nobody's holiday notice answers it (RFC 3834).
    made["Auto-Submitted"] = "auto-generated"
    made.set_content(text.encode("utf-8", "replace").decode())
    return made


def _domain(address: str) -> str:
    return address.rpartition("@")[2]


async def send(relay: Relay, *, to: str, subject: str, text: str) -> None:
    """Send one message to one address.

    Raises `errors.InvalidInput` for what can not be sent, `errors.MailRefused` where the server will not take it as it
    is, `errors.MailUnavailable` where it may at another time, or where it is not known whether it did.
    """
    made = message(relay.sender, to=to, subject=subject, text=text)
    under_way = _Sending(relay, to, made.as_bytes())
    try:
        async with asyncio.timeout(relay.timeout_seconds):
            await _tried(under_way)
    except TimeoutError:
        told = f"the mail server did not take the message within {relay.timeout_seconds:g} seconds"
        raise errors.MailUnavailable(f"{told}{_MAYBE if under_way.is_sent else ''}") from None


_MAYBE = "; whether it went out is not known"


async def _tried(under_way: _Sending) -> None:
    for attempt in range(TRIES_MAX):
        try:
            return await under_way.once()
        except errors.MailUnavailable:
            # Once the whole message may be there, another one might be a second.
            if under_way.is_sent or attempt + 1 == TRIES_MAX:
                raise
            await clock.sleep(PAUSE_SECONDS * 2**attempt * (0.5 + clock.jitter()))


class _Sending:
    """One message on its way. `is_sent`: from here on it may have been taken."""

    def __init__(self, relay: Relay, to: str, raw: bytes) -> None:
        self._relay, self._to, self._raw = relay, to, raw
        self.is_sent = False

    async def once(self) -> None:
        """One try. Raises `errors.MailRefused`, `errors.MailUnavailable`."""
        import aiosmtplib

        relay, self.is_sent = self._relay, False
        client = aiosmtplib.SMTP(
            hostname=relay.host,
            port=relay.port,
            timeout=relay.timeout_seconds,
            use_tls=relay.security == "tls",
            # Asked for, it is never gone without: nobody in between can take it away.
            start_tls=relay.security == "starttls",
            tls_context=await self._context(),
            # The library would look the machine's own name up.
            local_hostname=_domain(relay.sender),
        )
        try:
            await self._handed_over(client)
        except aiosmtplib.SMTPException as exc:
            raise self._problem(exc) from None
        except OSError as exc:
            raise self._unreachable(exc) from None
        finally:
            client.close()

    async def _context(self) -> ssl.SSLContext | None:
        if self._relay.security == "none":
            return None
        try:
            return await asyncio.to_thread(ssl.create_default_context, cafile=self._relay.ca_file or None)
        except OSError as exc:
            raise errors.MailRefused(f"RUNLORE_SMTP_CA_FILE can not be read: {type(exc).__name__}") from None

    async def _handed_over(self, client: aiosmtplib.SMTP) -> None:
        import aiosmtplib

        relay = self._relay
        await client.connect()
        if relay.username and relay.password is not None:
            await client.login(relay.username, relay.password.get_secret_value())
        await client.mail(relay.sender)
        await client.rcpt(self._to)
        self.is_sent = True
        try:
            await client.data(self._raw)
        except aiosmtplib.SMTPDataError:
            # It said no: nothing was taken.
            self.is_sent = False
            raise
        with contextlib.suppress(aiosmtplib.SMTPException, OSError):
            await client.quit(timeout=QUIT_SECONDS)

    def _problem(self, exc: aiosmtplib.SMTPException) -> errors.RunloreError:
        """What the library raised, as one of ours."""
        import aiosmtplib

        if isinstance(exc, aiosmtplib.SMTPResponseException):
            found = _ENHANCED.match(exc.message)
            code = f"{exc.code} {found[1]}" if found else str(exc.code)
            what = f"the mail server answered {_what(exc)} with {code}"
            if 400 <= exc.code < 500:
                return errors.MailUnavailable(what)
            return errors.MailRefused(what)
        if isinstance(exc, ConnectionError | TimeoutError):
            return self._unreachable(exc)
        # No STARTTLS, no way to log in, a reply that is none.
        return errors.MailRefused(f"the mail server can not do what is asked of it: {type(exc).__name__}")

    def _unreachable(self, exc: BaseException) -> errors.RunloreError:
        cause: BaseException | None = exc
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return errors.MailRefused(
                    f"the mail server's certificate is not good: {cause.verify_message}",
                    hint="RUNLORE_SMTP_CA_FILE names the authority that signed it",
                )
            cause = cause.__cause__ or cause.__context__
        what = "the mail server can not be reached, or hung up"
        return errors.MailUnavailable(f"{what}{_MAYBE if self.is_sent else ''}")


def _what(exc: aiosmtplib.SMTPResponseException) -> str:
    import aiosmtplib

    for kind, name in (
        (aiosmtplib.SMTPAuthenticationError, "the password"),
        (aiosmtplib.SMTPSenderRefused, "the sender"),
        (aiosmtplib.SMTPRecipientRefused, "the recipient"),
        (aiosmtplib.SMTPDataError, "the message"),
    ):
        if isinstance(exc, kind):
            return name
    return "us"
