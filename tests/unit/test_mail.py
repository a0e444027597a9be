"""A mail goes to one address by a real SMTP server, once, in time; and nothing of it is another header or address."""

from __future__ import annotations

import socket

import pydantic
import pytest

import mails
from runlore import errors, settings
from runlore.upkeep import mail


def relay(box, **more):
    return mail.Relay("127.0.0.1", box.port, "lore@example.org", **({"security": "none"} | more))


async def sent(box, *, to="bo@example.org", subject="Hello", text="A line.\n", **more):
    await mail.send(relay(box, **more), to=to, subject=subject, text=text)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(mail, "PAUSE_SECONDS", 0.001)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return mails.certificate(tmp_path_factory.mktemp("tls"))


async def test_a_mail_arrives_as_it_was_written_and_says_that_no_person_sent_it():
    with mails.server() as box:
        await sent(box, subject="Grüße aus dem Süden", text="Für dich:\n" + "x" * 1500 + "\n.\n")
    ((sender, to, made),) = box.mails
    assert (sender, to) == ("lore@example.org", ["bo@example.org"])
    assert (made["subject"], made["auto-submitted"]) == ("Grüße aus dem Süden", "auto-generated")
    assert made.get_content().replace("\r\n", "\n") == "Für dich:\n" + "x" * 1500 + "\n.\n"
    assert made["date"] and made["message-id"].endswith("@example.org>") and len(made["to"].addresses) == 1


async def test_by_starttls_with_a_password(tls):
    with mails.server(tls=tls[0], login=True) as box:
        await sent(
            box,
            security="starttls",
            ca_file=str(tls[1]),
            username=mails.USER,
            password=pydantic.SecretStr(mails.PASSWORD),
        )
    assert len(box.mails) == 1


async def test_a_password_that_is_refused_is_told_at_once_and_never_what_it_was(tls):
    secret = pydantic.SecretStr("a-wrong-password")
    with mails.server(tls=tls[0], login=True) as box, pytest.raises(errors.MailRefused) as told:
        await sent(box, security="starttls", ca_file=str(tls[1]), username="runlore", password=secret)
    assert told.value.message == "the mail server answered the password with 535 5.7.8" and not box.mails
    assert "a-wrong-password" not in str(told.value.as_dict())


async def test_a_server_without_starttls_or_with_a_strange_certificate_gets_nothing(tls):
    with mails.server() as box, pytest.raises(errors.MailRefused, match="can not do what is asked"):
        await sent(box, security="starttls")
    with (
        mails.server(tls=tls[0]) as other,
        pytest.raises(errors.MailRefused, match="certificate is not good"),
    ):
        await sent(other, security="starttls")
    assert not box.asked and not other.asked


async def test_a_ca_file_that_is_not_there_says_which_setting():
    with mails.server() as box, pytest.raises(errors.MailRefused, match="RUNLORE_SMTP_CA_FILE"):
        await sent(box, security="tls", ca_file="no-such-file.pem")


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
async def test_what_the_server_refuses_for_now_is_tried_again_and_arrives_once(command):
    with mails.server(**{command: ["451 4.7.1 later"]}) as box:
        await sent(box)
    assert len(box.mails) == 1 and box.asked.count(command) == 2


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
async def test_what_the_server_refuses_for_good_is_told_by_its_codes_alone(command):
    with (
        mails.server(**{command: ["550 5.1.1 no such user A.line"]}) as box,
        pytest.raises(errors.MailRefused) as told,
    ):
        await sent(box)
    assert "550 5.1.1" in told.value.message and "A.line" not in told.value.message
    assert box.asked.count(command) == 1


async def test_a_server_that_stays_busy_is_asked_three_times():
    with mails.server(RCPT=["451 x"] * 9) as box, pytest.raises(errors.MailUnavailable, match="451"):
        await sent(box)
    assert box.asked.count("RCPT") == mail.TRIES_MAX


async def test_a_server_that_is_not_there_is_told_as_one_that_can_not_be_reached():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(errors.MailUnavailable, match="can not be reached"):
            await sent(mails.Box(port=taken.getsockname()[1]))


async def test_a_server_that_says_nothing_is_given_up_in_time():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(errors.MailUnavailable, match=r"within 0\.1 seconds"):
            await sent(mails.Box(port=silent.getsockname()[1]), timeout_seconds=0.1)


@pytest.mark.parametrize("how", ["hangs", "hangs up"])
async def test_a_message_that_may_have_been_taken_is_not_sent_again(how):
    with mails.server(DATA=[how]) as box, pytest.raises(errors.MailUnavailable, match="is not known"):
        await sent(box, timeout_seconds=0.5 if how == "hangs" else 10)
    assert box.asked.count("DATA") == 1


@pytest.mark.parametrize(
    "address",
    [
        *("", "bo", "bo@", "@example.org", "bo@example.org,eve@example.org", "bo@ex ample.org", "bo@-a.org"),
        *(
            "bo@example.org\r\nBcc: eve@example.org",
            "Bo <bo@example.org>",
            "bö@example.org",
            "b" * 65 + "@a.b",
        ),
        *("bo@example.org>", "bo@example.org\n", "bo@" + "a" * 250 + ".org", "bo@a..b"),
    ],
)
def test_an_address_is_one_address_or_refused(address):
    with pytest.raises(errors.InvalidInput):
        mail.message("lore@example.org", to=address, subject="x", text="x")
    with pytest.raises(errors.InvalidInput):
        mail.message(address, to="bo@example.org", subject="x", text="x")


@pytest.mark.parametrize(
    "subject", ["", " ", "a\r\nBcc: eve@example.org", "a\nb", "a\0", "a\u2028b", "a\ud800", "x" * 201]
)
def test_a_subject_is_one_line_or_refused(subject):
    with pytest.raises(errors.InvalidInput):
        mail.message("lore@example.org", to="bo@example.org", subject=subject, text="x")


def test_a_text_can_begin_no_header_and_end_no_message():
    made = mail.message(
        "lore@example.org", to="bo@example.org", subject="x", text="\r\n.\r\nQUIT\r\nBcc: eve@a.b\n\ud800"
    )
    head = made.as_bytes().partition(b"\r\n\r\n")[0]
    assert b"eve" not in head and made.as_bytes().isascii()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"smtp_host": "mail"}, "RUNLORE_SMTP_FROM"),
        ({"smtp_host": "m", "smtp_from": "a@b", "smtp_username": "u"}, "go together"),
        (
            {
                "smtp_host": "m",
                "smtp_from": "a@b",
                "smtp_username": "u",
                "smtp_password": "p",
                "smtp_security": "none",
            },
            "in the clear",
        ),
        ({"public_url": "ftp://x"}, "public_url"),
        ({"public_url": "https://x/below?a=b"}, "public_url"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given, told):
    with pytest.raises(pydantic.ValidationError, match=told):
        settings.Settings(**given)


def test_without_a_host_nothing_is_mailed():
    assert mail.relay_of(settings.Settings()) is None
    made = mail.relay_of(settings.Settings(smtp_host="mail.example.org", smtp_from="lore@example.org"))
    assert made == mail.Relay("mail.example.org", 587, "lore@example.org", password=pydantic.SecretStr(""))
