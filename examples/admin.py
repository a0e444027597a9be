"""Administration with OpenAI's own client, and nothing else: a project, a key, a limit that is hit, and the log of it.

runlore admin bootstrap --reason "setting up"          # prints the admin key, once
RUNLORE_HTTP_KEYS=true runlore serve --up &
OPENAI_BASE_URL=http://127.0.0.1:7077/v1 OPENAI_ADMIN_KEY=rla_... python examples/admin.py
"""

from __future__ import annotations

import itertools

import openai


def main() -> None:
    # Address and admin key are those of the environment, as for OpenAI's own API.
    admin = openai.OpenAI(api_key="none").admin.organization

    project = admin.projects.create(name="Shop bots")
    account = admin.projects.service_accounts.create(project.id, name="checkout")
    print(f"project {project.id}, service account {account.name}, role {account.role}")
    assert account.api_key is not None

    # What its keys may ask for in a minute, over all replicas together; what its calls to models may cost in a month.
    rate = admin.projects.rate_limits.update_rate_limit(
        "rl-seed", project_id=project.id, max_requests_per_1_minute=3
    )
    print(f"{rate.model}: {rate.max_requests_per_1_minute} requests in a minute")
    cap = admin.projects.spend_limit.update(
        project.id, threshold_amount=5_000, currency="USD", interval="month"
    )
    print(f"models: ${cap.threshold_amount / 100:.2f} in a {cap.interval}, {cap.enforcement.status}")

    # What an agent of the project does, with its own key: here it asks for seeds until that is one too many.
    agent = openai.OpenAI(api_key=account.api_key.value, max_retries=0)
    seed = f"/projects/{project.id}/memories/support/seed"
    for number in itertools.count(1):
        try:
            agent.get(seed, cast_to=object, options={"params": {"session_id": "conversation-1"}})
        except openai.RateLimitError as refused:
            print(f"request {number} is one too many; again in {refused.response.headers['retry-after']} s")
            break

    # Neither key opens what is the other's.
    try:
        openai.OpenAI(api_key="none", admin_api_key=account.api_key.value).admin.organization.projects.list()
    except openai.PermissionDeniedError as refused:
        print(f"the agent's key administers nothing: {refused.code}")

    admin.projects.service_accounts.delete(account.id, project_id=project.id)
    try:
        agent.get(seed, cast_to=object, options={"params": {"session_id": "conversation-1"}})
    except openai.AuthenticationError:
        print("the service account is gone, and its key with it")

    # All of it, newest first: who, what, and how it was changed.
    for entry in admin.audit_logs.list(project_ids=[project.id]):
        assert entry.actor is not None and entry.actor.api_key is not None
        told = entry.to_dict()[entry.type]
        assert isinstance(told, dict)
        print(
            f"{entry.type} by {entry.actor.api_key.id}: {told.get('changes_requested') or told.get('data') or ''}"
        )


if __name__ == "__main__":
    main()
