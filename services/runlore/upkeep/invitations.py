"""How an invitation reaches whom it is for: by mail where there is a mail server, else by the hand of whoever invites.

The invitation stands before anything is mailed, so a mail that fails loses nothing: whoever invited is told, and has
the token to hand on, or sends another one (`people.renew`). Where the mail went out only its reader has the token. The
link carries it behind `#`, which no browser sends to a server: so it is in no log of one.
"""

from __future__ import annotations

from dataclasses import dataclass

from runlore import errors
from runlore.settings import Settings
from runlore.upkeep import mail
from runlore.upkeep.organization import Invite

PAGE = "/invitation"
ACCEPT = "/v1/organization/invites/accept"
SENT, FAILED, NOT_MAILED = "sent", "failed", "not mailed"
SUBJECT = "You are invited to Runlore"


@dataclass(frozen=True)
class Post:
    """How mail goes out, and where people reach the service. Without a relay nothing is mailed."""

    relay: mail.Relay | None = None
    public_url: str = ""


@dataclass(frozen=True)
class Delivery:
    """What became of an invitation's mail; `problem` says why it is not out. No token."""

    state: str
    problem: errors.RunloreError | None = None

    @property
    def told(self) -> str:
        """One line for whoever invites."""
        if self.problem is None:
            return self.state
        return f"{self.state}: {self.problem.kind}: {self.problem.message}"


def post_of(settings: Settings) -> Post:
    """How mail goes out by these settings. Raises `errors.InvalidInput`."""
    return Post(mail.relay_of(settings), settings.public_url.rstrip("/"))


async def deliver(post: Post, made: Invite, token: str) -> Delivery:
    """Mail an invitation, if that is wanted here. Never raises one of our errors: it stands whatever comes of this."""
    if post.relay is None:
        return Delivery(NOT_MAILED)
    try:
        await mail.send(
            post.relay, to=made.email, subject=SUBJECT, text=text_of(post.public_url, made, token)
        )
    except errors.RunloreError as exc:
        return Delivery(FAILED, exc)
    return Delivery(SENT)


def link(public_url: str, token: str) -> str:
    """The page where an invitation is accepted; empty where nobody said how people reach the service."""
    return f"{public_url}{PAGE}#{token}" if public_url else ""


def command(public_url: str, token: str) -> str:
    """The same without a browser."""
    return (
        f'curl -X POST "{public_url or "$RUNLORE_URL"}{ACCEPT}" -H "Authorization: Bearer {token}" '
        '-H "Content-Type: application/json" -d \'{"name": "Your Name"}\''
    )


def text_of(public_url: str, made: Invite, token: str) -> str:
    """What the mail says."""
    projects = [f"    {role} of the project {name}" for name, role in sorted(made.projects.items())]
    what = "may do everything" if made.role == "owner" else "may read"
    lines = [
        f"You are invited to administer Runlore, as {made.role}: somebody who {what}.",
        *(["You will also be:", *projects] if projects else []),
        "",
    ]
    if public_url:
        lines += ["Open this page, give your name, and accept:", "", f"    {link(public_url, token)}", ""]
        lines += ["Or, without a browser:", ""]
    else:
        lines += ["Accept it with this command. RUNLORE_URL is the address of the service:", ""]
    lines += [
        f"    {command(public_url, token)}",
        "",
        "The answer has your admin key. It is shown this once: keep it where you keep passwords.",
        f"The invitation is good once, until {made.expires_at[:16].replace('T', ' ')} UTC.",
        "Whoever has this mail can accept it, so do not pass it on. If you did not expect it, delete it.",
        "",
    ]
    return "\n".join(lines)
