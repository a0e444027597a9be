"""`runlore admin invites` and `runlore admin users`: the people who administer (docs/ADMIN.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import admin, ui

if TYPE_CHECKING:
    from runlore.upkeep.administration import Administrator
    from runlore.upkeep.invitations import Post
    from runlore.upkeep.organization import Invite

invites_app = typer.Typer(help="Invitations: who may become a user.")
users_app = typer.Typer(help="Users: people who administer, or read.")

EmailArgument = Annotated[str, typer.Argument(metavar="EMAIL", help="Whose it is.", show_default=False)]
InviteArgument = Annotated[str, typer.Argument(metavar="ID", help="The invitation's id.", show_default=False)]
UserArgument = Annotated[str, typer.Argument(metavar="USERID", help="The user's id.", show_default=False)]


def register() -> None:
    admin.app.add_typer(invites_app, name="invites")
    admin.app.add_typer(users_app, name="users")


@invites_app.command("create")
def create_invite(
    email: EmailArgument = "",
    role: Annotated[str, typer.Option("--role", help="owner or reader.")] = "reader",
    project: Annotated[
        list[str] | None,
        typer.Option("--project", metavar="PROJECT:ROLE", help="Owner or member there.", show_default=False),
    ] = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Invite somebody: mailed where RUNLORE_SMTP_HOST is set, else the token that they accept with is shown this once.

    It is good for a week. Where the mail can not be sent the invitation stands, and the token is shown.

    Example: runlore admin invites create bo@example.org --project acme:owner --reason "joins the team"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        from runlore import errors
        from runlore.upkeep import invitations, people

        post = invitations.post_of(ui.settings_of(home))
        given = {name: what for name, _, what in (one.partition(":") for one in project or ())}
        if role not in ("owner", "reader") or not set(given.values()) <= {"owner", "member"}:
            raise errors.InvalidInput(
                "--role is owner or reader, and --project PROJECT:owner or PROJECT:member"
            )
        made, token = await people.invite(hand, email, role=role, projects=given)
        return await _delivered(post, made, token)

    admin.change(step, reason, home, as_json, email)


async def _delivered(post: Post, made: Invite, token: str) -> tuple[dict[str, Any], str]:
    """What is answered once an invitation stands: that it was mailed, or the token."""
    from runlore.upkeep import invitations

    delivery = await invitations.deliver(post, made, token)
    is_sent = delivery.state == invitations.SENT
    answer = {
        **admin.shown(made),
        **{"token": None if is_sent else token, "mail": delivery.state},
        **({"problem": delivery.problem.as_dict()} if delivery.problem else {}),
    }
    if is_sent:
        return answer, f"mailed to {made.email}, good until {made.expires_at}"
    if delivery.problem is not None:
        told = f"the mail could not be sent ({delivery.problem.kind}: {delivery.problem.message})"
        return answer, f"{told}\nthe invitation stands; hand its token on, this once:\n{token}"
    return answer, invitations.link(post.public_url, token) or token


@invites_app.command("resend")
def resend_invite(
    invite: InviteArgument = "",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Send an invitation anew, with another token that is good for a week; the one before is good no more.

    Example: runlore admin invites resend 0198f0c2d1ab4e5f9c0a1b2c3d4e5f60 --reason "the mail was lost"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        from runlore.upkeep import invitations, people

        post = invitations.post_of(ui.settings_of(home))
        return await _delivered(post, *await people.renew(hand, invite))

    admin.change(step, reason, home, as_json, invite)


@invites_app.command("list")
def list_invites(home: ui.HomeOption = None, as_json: ui.JsonOption = False) -> None:
    """List invitations, also those that were accepted or are over.

    Example: runlore admin invites list
    """

    async def work(out: ui.Out) -> None:
        from runlore.upkeep import administration

        async with admin.opened(home) as (store, _):
            rows = [admin.shown(one) for one in (await administration.read(store)).invites.values()]
        out.answer({"invites": rows})
        columns = ("id", "email", "role", "expires_at", "accepted_at")
        out.table(columns, [[row[column] for column in columns] for row in rows])

    ui.run(work, as_json=as_json)


@invites_app.command("delete")
def delete_invite(
    invite: InviteArgument = "",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Take an invitation back that was not accepted yet.

    Example: runlore admin invites delete 0198f0c2d1ab4e5f9c0a1b2c3d4e5f60 --reason "a wrong address"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        from runlore.upkeep import people

        await people.withdraw(hand, invite)
        return {"id": invite, "deleted": True}, f"invitation {invite} is taken back"

    admin.change(step, reason, home, as_json, invite)


@users_app.command("list")
def list_users(home: ui.HomeOption = None, as_json: ui.JsonOption = False) -> None:
    """List the users, with what they are in which project.

    Example: runlore admin users list
    """

    async def work(out: ui.Out) -> None:
        from runlore.upkeep import administration

        async with admin.opened(home) as (store, _):
            org = await administration.read(store)
        rows = []
        for one in org.users.values():
            roles = {
                name: kept.members[one.id].role
                for name, kept in org.projects.items()
                if one.id in kept.members
            }
            rows.append({**admin.shown(one), "projects": roles})
        out.answer({"users": rows})
        out.table(
            ("id", "email", "name", "role", "projects"),
            [
                [one["id"], one["email"], one["name"], one["role"], ", ".join(sorted(one["projects"]))]
                for one in rows
            ],
        )

    ui.run(work, as_json=as_json)


@users_app.command("delete")
def delete_user(
    user: UserArgument = "",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Take a user away, out of every project too: within 5 seconds none of their admin keys is good.

    Example: runlore admin users delete user-0198f0c2d1ab4e5f9c0a1b2c3d4e5f60 --reason "left the company"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        from runlore.upkeep import people

        await people.remove(hand, user)
        return {"id": user, "deleted": True}, f"user {user} and their admin keys are gone"

    admin.change(step, reason, home, as_json, user)
