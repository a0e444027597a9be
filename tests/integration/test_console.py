"""The console in-process: every page is whole, and what others wrote does nothing."""

from __future__ import annotations

import pathlib
import re

import made
from console_pages import (
    HOME,
    HOSTILE,
    HTML,
    ROUTES,
    Seen,
    crawled,
    filled,
    letters,
    page,
    signed_in,
    whole,
)
from lookup_service import give_workspace, served
from runlore import clock
from runlore.consumers import consolidate
from runlore.lookup import explain, index
from runlore.lookup.http.console import charts, memories, operations, runs, sessions, snapshots, texts
from runlore.memory import model_summary
from runlore.models import choices, ledger, port
from runlore.testing import models
from runlore.upkeep import administration, audit, spendlimits


async def test_every_page_that_a_link_leads_to_is_whole(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        found, routes = await crawled(one, "/")
        unseen = {route.path for route in ROUTES if "GET" in route.methods} - routes
        # That takes an admin key (test_console_admin.py).
        unseen = {path for path in unseen if not path.startswith("/administration/")}
        # Forms lead to these; and what pages load is no link.
        assert unseen == {
            "/sign-in",
            "/static/{name}",
            "/projects/{project}/explain",
            "/projects/{project}/compare",
            "/projects/{project}/memories/{memory}/search",
            # Nothing is held there.
            "/projects/{project}/reviews/{memory}/{rollout}",
        }
        words = " ".join(word for seen in found.values() for word in seen.words)
        for told in (
            "Revision 3",
            "consolidated",
            "dead",
            "What is wrong or waits",
            "branch",
        ):
            assert told in words, told


# --- what others wrote --------------------------------------------------------------------------------------------

BAD = (
    HOSTILE,
    "[click](javascript:alert(1)) <b onmouseover=alert(1)>x</b> ![i](http://evil.example/x.png)",
    "\u202egnp.exe\u2066 \u200bhidden\U000e0041\U000e0042",
    "x" * 5000,
    "{{ 7 * 7 }} {% raw %} ${7*7}",
)


async def test_what_a_run_said_and_what_things_are_called_does_nothing_on_any_page(tmp_path):
    async with served(tmp_path) as one:
        for number, text in enumerate(BAD):
            record = made.payload(number, text=text, final=text)
            data = made.data(number, rollout=f"{text[:60]} & \"'<i>", record=record)
            data["run_id"] = f"run-{number}-{text[:40]}"
            await one.client.post("/v1/projects/acme/events", json=data)
        await one.work()
        bad = [
            ("<img src=x onerror=alert(1)>.md", b"<script>alert(1)</script>\n"),
            ("a\u202eb.txt", b"\xe2\x80\xae x\n"),
        ]
        await give_workspace(
            one.service, one.client, *bad, ("q?#%2F&\"'.txt", b"odd\n"), ("caf\u00e9 \U0001f600", b"x" * 9999)
        )
        await one.work()
        found, _ = await crawled(one, "/", most=12)
        text = " ".join(word for seen in found.values() for word in seen.words)
        for sign in ("\u202e", "\u2066", "\u200b", "\U000e0041"):
            assert sign not in text and f"U+{ord(sign):04X}" in text, hex(ord(sign))
        assert "<script>" in text and "{{ 7 * 7 }}" in text


async def test_a_page_that_is_asked_for_with_nonsense_says_so_as_a_page(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        for path, status in (
            ("/projects/acme/memories/support/revisions/99", 404),
            ("/projects/acme/memories/support/revisions/0", 404),
            ("/projects/acme/memories/support/revisions/x", 400),
            ("/projects/acme/memories/support/revisions/1/files/..%2f..%2fetc", 404),
            ("/projects/acme/memories/support/revisions/1/why/MEMORY.md?line=9999", 404),
            ("/projects/acme/memories/support/revisions/1/why/MEMORY.md", 400),
            ("/projects/acme/memories/support/diff?to=1&from=2&subject=" + "x" * 2000, 400),
            ("/projects/acme/memories/none", 404),
            ("/projects/acme/memories/NO%20NAME", 400),
            ("/projects/acme/memories/support/rollouts/..%2f..", 400),
            ("/projects/acme/memories/support/rollouts/none", 404),
            ("/projects/acme/memories/support?cursor=x", 400),
            ("/projects/acme/runs?cursor=W10", 400),
            ("/projects/acme/runs/none", 404),
            ("/projects/acme/snapshots/none/tree", 404),
            ("/projects/acme/snapshots/conv/tree?path=none", 404),
            ("/projects/acme/snapshots/conv/file?path=src", 400),
            ("/projects/acme/snapshots/conv/diff?to=conv&path=none", 404),
            ("/projects/acme/lines/none/main", 404),
            ("/projects/acme/dead/none", 404),
            ("/projects/acme/memories/support/search?q=" + "a" * 1001, 400),
            ("/projects/%FF", 400),
            ("/static/layout.html", 404),
            ("/static/..%2fpages.py", 404),
        ):
            await page(one, path, status=status)
        await page(one, "/projects/acme/memories/support/search?q=%00%22*%22")


async def test_a_large_file_is_cut_with_a_note_and_a_binary_one_is_shown_by_its_head(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        base = "/projects/acme/snapshots/conv"
        large = await one.client.get(f"{base}/file?path=large.txt", headers=HTML)
        whole(large)
        assert len(large.content) < 400_000 and "The first 256 KiB of 5.2 MiB" in large.text
        more = await one.client.get(f"{base}/file?path=large.txt&from=1001", headers=HTML)
        assert "Lines 1001 to 2000" in more.text
        binary = await one.client.get(f"{base}/file?path=src/bytes.bin", headers=HTML)
        whole(binary)
        assert "00 01 02 03" in binary.text and "\x01" not in binary.text
        saved = await one.client.get(f"{base}/raw?path=src/bytes.bin", headers=HTML)
        assert saved.content == bytes(range(256)) * 20
        assert saved.headers["content-disposition"].startswith('attachment; filename="bytes.bin"')
        assert saved.headers["content-type"] == "application/octet-stream"
        assert saved.headers["content-security-policy"] == "sandbox"


# --- what a project is told of the whole --------------------------------------------------------------------------


async def test_the_status_of_a_project_names_no_other_project_and_no_machine(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        from runlore.upkeep import pauses, workers

        await filled(one, await one.key())
        await pauses.put(
            one.store, "consolidate", project="secretive", memory=None, reason="hush", by={"user": "eve"}
        )
        stuck = {"secretive/plans": "hush", "acme/support": "a broken pack"}
        stages = {
            "consolidate": {
                "state": "failed",
                "cause": "secretive/packs/x",
                "since": "now",
                "memories": stuck,
            }
        }
        teller = workers.Teller(one.store, lambda: stages, instance="pod-7")
        await teller._put(stages)
        bad = made.data(77, project="secretive")
        bad["record"] = "no JSON"
        await one.client.post("/v1/projects/secretive/events", json=bad, headers=await one.key("secretive"))
        await letters(one)
        text = (await one.client.get("/projects/acme/status", headers=await signed_in(one, "read"))).text
        assert "failed" in text and "a broken pack" in text and "invalid_record 1" in text
        for word in ("secretive", "hush", "eve", "pod-7"):
            assert word not in text, word
        theirs = (
            await one.client.get(
                "/projects/secretive/dead", headers=await signed_in(one, "read", "secretive")
            )
        ).text
        assert "invalid_record" in theirs and HOSTILE[:20] not in theirs


async def test_an_empty_project_says_what_to_do_and_lists_go_on_over_pages(tmp_path, monkeypatch):
    async with served(tmp_path) as one:
        for path in (
            "/",
            HOME,
            f"{HOME}/runs",
            f"{HOME}/snapshots",
            f"{HOME}/dead",
            f"{HOME}/status",
            f"{HOME}/keys",
        ):
            await page(one, path)
        assert "runlore emit" in " ".join((await page(one, "/")).words)
        assert "No memory yet" in (await page(one, HOME)).words
        await filled(one)
        monkeypatch.setattr(runs, "SHOWN", 4)
        monkeypatch.setattr(memories, "REVISIONS_SHOWN", 2)
        for start, part in ((f"{HOME}/runs", "/runs/run-"), (f"{HOME}/memories/support", "/revisions/")):
            seen, path = [], start
            while path:
                one_page = await page(one, path)
                seen += [link for link in dict.fromkeys(one_page.links) if re.search(rf"{part}\d+$", link)]
                path = next((link for link in one_page.links if "cursor=" in link), None)
            wanted = 12 if "runs" in start else 6
            assert len(seen if "revisions" in part else set(seen)) == wanted, (start, seen)


async def test_the_states_of_a_list_are_those_that_explain_tells(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        await one.post("events", made.data(40), status=202)
        await letters(one)  # Recorded, and no revision made yet.
        await one.post("events", made.data(1, attempt=2, record=made.payload(99)), status=202)
        await letters(one)
        text = (await one.client.get(f"{HOME}/runs", headers=HTML)).text
        rows = re.findall(
            r'/runs/(run-\d+)"><bdi>.*?</th>\s*<td data-label="State"><span>\s*<span class="tag \w*">(\w+)',
            text,
            re.S,
        )
        assert {state for _, state in rows} >= {"recorded", "consolidated", "superseded"}
        for run, state in rows:
            told = (await one.get(f"runs/{run}")).json()["runs"]
            assert state in {story["state"] for story in told}, (run, state)


def test_markdown_of_others_holds_no_html_no_script_and_no_image():
    def why(line):
        return f"/why?line={line}"

    text = (
        "# T <script>alert(1)</script>\n\n<img src=x onerror=alert(1)>\n\n[a](javascript:alert(1)) [b](//evil.example)"
        ' [c](data:text/html,x) [d](https://example.org "t") [e](other.md) [f](none.md) ![g](http://evil.example/g.png)\n'
        "second line\n\n- one\n  - two\n\n| a | b |\n|---|---|\n| <i>1</i> | 2 |\n\n"
        "```html\n<script>x</script>\nrow\n```\n"
        "<javascript:alert(1)> <https://example.org/auto>\n"
    )
    made_page = str(
        texts.markdown(text, why, {1}, lambda name: f"/files/{name}" if name == "other.md" else None)
    )
    seen = Seen(made_page)
    assert (
        not seen.wrong and "<script" not in made_page and "<img" not in made_page and "<i>" not in made_page
    )
    out = [link for link in seen.links if not link.startswith("/")]
    assert out == ["https://example.org", "http://evil.example/g.png", "https://example.org/auto"]
    assert "/files/other.md" in seen.links
    numbered = [int(link.rpartition("=")[2]) for link in seen.links if link.startswith("/why")]
    assert numbered == [1, 3, 5, 6, 8, 9, 11, 13, 16, 17, 19]
    assert made_page.count("known") == 1


def test_the_bounds_in_the_docs_are_those_of_the_code():
    text = (pathlib.Path(__file__).resolve().parents[2] / "docs/CONSOLE.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", text, re.M))
    for row, bounds in {
        "a file of a snapshot": (
            f"{snapshots.FILE_BYTES_MAX // 1024} KiB",
            f"{texts.LINES_MAX:,} lines",
            f"{texts.LINE_CHARS_MAX:,} characters",
        ),
        "a file of memory as a page": (f"{texts.MARKDOWN_CHARS_MAX:,} characters",),
        "a difference of memory": (f"{memories.DIFF_FILES_MAX} files", f"{texts.LINES_MAX:,} lines"),
        "a difference of a snapshot's file": (f"{snapshots.FILE_BYTES_MAX // 1024} KiB",),
        "an event that is dead": (
            f"{operations.PREVIEW_BYTES_MAX // 1024} KiB",
            f"{operations.PREVIEW_CHARS_MAX:,} characters",
        ),
        "a day of the chart": (f"{index.DAY_RUNS_MAX:,} runs",),
        "a form": (f"{sessions.FORM_BYTES_MAX // 1024} KiB", f"{sessions.FIELDS_MAX} fields"),
    }.items():
        assert all(bound in rows[row] for bound in bounds), (row, bounds)
    assert f"{sessions.TERM_SECONDS // 3600} hours" in text
    for picture in re.findall(r"\]\((console/[^)]+)\)", text):
        path = pathlib.Path(__file__).resolve().parents[2] / "docs" / picture
        assert path.stat().st_size < 150_000, picture


async def test_the_chart_counts_what_ended_on_each_day_and_no_run_twice(tmp_path):
    async with served(tmp_path) as one:
        day = 24 * 60
        numbers = {1: 0, 2: day - 1, 3: day, 4: 3 * day}
        for number, minute in numbers.items():
            record = {**made.payload(number), "updated_at": made.moment(minute)}
            await one.events(made.data(number, record=record))
        again = {**made.payload(1), "updated_at": made.moment(5)}
        await one.events(made.data(1, attempt=2, record=again))
        days = ["2026-02-28", "2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04"]
        counts = await one.service.lists.ask(lambda found: found.runs_by_day("acme", days))
        assert counts == [0, 2, 1, 0, 1]
        assert await one.service.lists.ask(lambda found: found.runs_by_day("other", days)) == [0] * 5
        chart = charts.per_day(days, counts, 2)
        assert [bar.label for bar in chart.bars][1:3] == ["2026-03-01: 2 or more runs", "2026-03-02: 1 run"]
        assert chart.total == "4 in 5 days, at most 2 on one"
        assert all(bar.y + bar.height == chart.height for bar in chart.bars)
        empty = charts.per_day(days, [0] * 5, 10)
        assert {bar.height for bar in empty.bars} == {0.0}


def test_a_chart_of_a_month_has_each_of_its_days_up_to_today():
    assert (
        charts.days_of("2026-02")[0::27] == ["2026-02-01", "2026-02-28"]
        and len(charts.days_of("2024-02")) == 29
    )
    now = clock.now()
    assert len(charts.days_of(f"{now:%Y-%m}")) == now.day and charts.days_of("2999-01") == ["2999-01-01"]
    spent = charts.bars("x", ["a", "b", "c"], [0.0, 0.0001, 1.0], ["0", "little", "much"], "in all")
    assert [bar.height for bar in spent.bars] == [0.0, 3.0, charts.HEIGHT]


def test_text_is_cut_where_it_is_too_long_and_half_a_character_is_none():
    assert texts.as_text("héé".encode()[:-1], is_cut=True) == "hé"
    assert texts.as_text("héé".encode()[:-1], is_cut=False) is None
    assert texts.as_text(b"a\0b", is_cut=False) is None and texts.as_text(b"\xff" * 9, is_cut=True) is None
    many = [str(number) for number in range(2500)]
    assert [texts.lines_of(many, first)[-1].number for first in (1, 1001, 2001)] == [1000, 2000, 2500]
    assert texts.lines_of(many, 9999) == []
    (line,) = texts.lines_of(["x" * 2001])
    assert (len(line.text), line.cut) == (2000, 1)
    rows = texts.changed("--- a\n+++ b\n@@ -1 +1 @@\n--- not a header\n+++ nor this\n same\n")
    assert [(row.what, row.text) for row in rows] == [
        ("hunk", "@@ -1 +1 @@"),
        ("del", "-- not a header"),
        ("add", "++ nor this"),
        ("same", "same"),
    ]
    long = texts.changed("@@ @@\n" + "+x\n" * 5000)
    assert len(long) == texts.LINES_MAX + 2 and "cut" in long[-1].text
    assert [texts.size(count) for count in (0, 1023, 1024, 5 * 2**20, 3 * 2**40, None)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 TiB",
        "",
    ]
    assert texts.moment("unknown") == "unknown" and texts.moment("<b>") == "<b>"
    assert "2026-03-01 00:30" in texts.moment("2026-03-01T01:30:00+01:00")
    assert str(texts.ticked("run `a<b>` now")) == "run <code>a&lt;b&gt;</code> now"
    assert str(texts.found_in("an [odd<i>] word")) == "an <mark>odd&lt;i&gt;</mark> word"


def test_what_is_hidden_in_text_is_shown_by_its_number_and_what_is_seen_stays():
    for sign in "\u202e\u2066\u200b\ufeff\x1b\x00\x9b\u2028\ud800\U000e0041\u00ad":
        assert texts.visible(f"a{sign}b") == f"a‹U+{ord(sign):04X}›b"
    for text in ("tab\tand\nline", "héllo", "שלום", "👨\u200d👩", "日本"):
        assert texts.visible(text) == text


async def test_what_a_revert_took_out_shows_as_held_and_its_time_line_says_why(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        await consolidate.revert(
            one.store, one.bus, one.service.reader, "acme", "support", to=1, reason="a bad <merge>"
        )
        html = (await one.client.get(f"{HOME}/memories/support", headers=HTML)).text
        words = " ".join((await page(one, f"{HOME}/memories/support")).words)
        assert "revert to 1: a bad <merge>" in words and "are held for review" in words
        (held,) = [row["held"] for row in (await one.get("memories")).json()["items"]]
        assert f"{held} held" in words
        runs_page = (await one.client.get(f"{HOME}/runs", headers=HTML)).text
        assert runs_page.count(">held<") >= 3
        name = re.search(r"/rollouts/([\w-]+)\"><bdi>\1</bdi></a> · revert", html)[1]
        story = (await one.get(f"runs/{name}")).json()["runs"][0]
        assert story["state"] == "held"
        text = " ".join((await page(one, f"{HOME}/runs/{story['run']}")).words)
        assert "held" in text and "runlore review show" in text


async def test_what_is_held_is_approved_or_rejected_for_a_reason_and_the_page_says_what_it_would_change(
    tmp_path,
):
    async with served(tmp_path) as one:
        await filled(one)
        ports = (one.store, one.bus, one.service.reader, "acme", "support")
        await consolidate.revert(*ports, to=1, reason=f"a bad {HOSTILE}")
        listed = await page(one, f"{HOME}/reviews")
        links = [link for link in listed.links if "/reviews/support/" in link]
        assert len(links) >= 2
        for link in links:
            seen = await page(one, link)
            assert HOSTILE not in (await one.client.get(link, headers=HTML)).text
        words = " ".join(seen.words)
        assert "What letting it in would change" in words and "give it to no agent" in words
        sent = seen.fields_of("hold")
        for missing in ("reason", "hold"):
            refused = await one.client.post(
                f"{link}/reject", data={**sent, "reason": "bad", missing: ""}, headers=HTML
            )
            whole(refused, status=400)
        assert (await one.client.post(f"{link}/burn", data=sent, headers=HTML)).status_code == 404
        done = await one.client.post(f"{link}/reject", data={**sent, "reason": "no <use>"}, headers=HTML)
        assert done.status_code == 303
        told = " ".join((await page(one, done.headers["location"])).words)
        assert "stays out as it stands" in told and "rejected" in told and "no <use>" in told
        # Rejected, it has another hold: what was shown before can not be approved any more.
        stale = await one.client.post(f"{link}/approve", data={**sent, "reason": "yes"}, headers=HTML)
        whole(stale, status=409)
        fresh = (await page(one, link)).fields_of("hold")
        done = await one.client.post(f"{link}/approve", data={**fresh, "reason": "after all"}, headers=HTML)
        assert done.status_code == 303
        await one.work()
        left = [name for name in (await page(one, f"{HOME}/reviews")).links if "/reviews/support/" in name]
        assert link not in left and len(left) == len(links) - 1
        acts = [act.what for act in await audit.read_all(one.store)]
        assert acts.count("review reject") == 1 and acts.count("review approve") == 2
        whole(await one.client.get(link, headers=HTML), status=404)


async def test_the_page_of_spend_says_what_models_took_and_what_waits_for_budget(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        assert "No model was asked" in " ".join((await page(one, f"{HOME}/spend")).words)
        engine, chosen = models.ScriptedEngine(), choices.parse({"budget": {"day_tokens": 40_000}})
        one.service.known = lambda: _known(chosen)
        one.service._known = None
        book = ledger.Ledger(one.store)
        ask = port.Ask(model="gpt-5.4-mini", instructions="x", input="y", answer=model_summary.Summary)
        meter = ledger.Metered(
            engine, book, "acme", "support", budgets=chosen.budgets("acme", "support"), table=chosen.table()
        )
        await meter.ask(ask)
        words = " ".join((await page(one, f"{HOME}/spend?by=model")).words)
        assert "gpt-5.4-mini" in words and "of 40,000 tokens used" in words
        assert "per day" in words and "in all" in words
        hand = administration.Administrator(one.store, {"user": "ann"})
        await spendlimits.set_limit(hand, "acme", 1_250)
        await spendlimits.set_limit(hand, None, 0)
        words = " ".join((await page(one, f"{HOME}/spend")).words)
        assert "of $12.50 used; calls are made" in words
        assert "it refuses calls now" in words
        for query, status in (("by=nobody", 400), ("month=2026-13", 400), ("month=2026-01", 200)):
            whole(await one.client.get(f"{HOME}/spend?{query}", headers=HTML), status=status)


async def _known(chosen):
    return explain.Known(chosen)
