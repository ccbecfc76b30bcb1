"""Tasks with known answers for `live.py`: questions about tables, logs, JSON, texts and folders, and their scorer.

`tasks(seed)` is deterministic: the same on every machine and Python. Most kinds need a few lines of Python; the kinds
in READING need an understanding of language. The kinds in DATA_KINDS use real data from a folder (`Data`) that this
project does not ship: docs/evaluation.md says where to get it. Tune on the seeds in TUNING only, and report on those in
REPORTING.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import random
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

GENERATION = 1  # part of every result's identity: raise it when a task changes
TUNING = (1, 2, 3)
REPORTING = (101, 102, 103)
LONGEST_ANSWER = 1500  # characters; anything longer repeats its input instead of answering


class Task(NamedTuple):
    """One question. `wanted` lists the accepted forms; in a form, `a&b` asks for both parts."""

    name: str
    question: str
    context: Any
    wanted: list[str]
    scoring: str = "answer"  # or "count" (near misses score in part), or "label" (exactly one of LABELS)


Made = tuple[str, Any, list[str]]
KINDS: dict[str, Callable[[random.Random], Made]] = {}
READING = ("reviews", "topic", "refund", "french", "reason", "contracts")

PEOPLE = ("Noor Haddad", "Tomas Lind", "Priya Nair", "Olga Senn", "Jack Moran", "Wei Zhang", "Lucia Prado")
CITIES = ("Lyon", "Porto", "Graz", "Turku", "Ghent", "Brno")
SERVICES = ("gateway", "ledger", "mailer", "indexer")


def kind(make: Callable[[random.Random], Made]) -> Callable[[random.Random], Made]:
    KINDS[make.__name__] = make
    return make


def tasks(seed: int, data: Data | None = None) -> list[Task]:
    """One task of each kind. The kinds that need real data are left out without it."""
    made = [Task(name, *make(random.Random(f"{name}:{seed}"))) for name, make in KINDS.items()]
    if data:
        made += [make(random.Random(f"{name}:{seed}"), data) for name, make in DATA_KINDS.items()]
    return made


# --- tables --------------------------------------------------------------------------------------------------------


def table(header: str, rows: list[tuple[Any, ...]]) -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def money(r: random.Random, low: int, high: int) -> str:
    return f"{r.randrange(low * 100, high * 100) / 100:.2f}"


def day(r: random.Random, start: str, span: int) -> str:
    return (dt.date.fromisoformat(start) + dt.timedelta(days=r.randrange(span))).isoformat()


@kind
def csv_sum(r: random.Random) -> Made:
    rows = [(n, day(r, "2027-01-01", 300), r.choice(PEOPLE), money(r, 3, 400)) for n in range(1, 401)]
    total = sum(float(row[3]) for row in rows)
    return "What do all expenses add up to?", table("id,date,employee,amount", rows), [f"{total:.2f}"]


@kind
def csv_top(r: random.Random) -> Made:
    busy = r.choice(PEOPLE)
    rows = [(5000 + n, r.choice((*PEOPLE, busy)), r.choice(("low", "high"))) for n in range(350)]
    most = Counter(row[1] for row in rows).most_common(1)[0]
    question = "Who is assigned the most tickets, and how many are they?"
    return question, table("ticket,assignee,priority", rows), [f"{most[0]}&{most[1]}"]


@kind
def csv_average(r: random.Random) -> Made:
    levels = {city: r.randrange(20, 90) for city in CITIES}
    rows = [(n, city, levels[city] + r.randrange(-9, 10)) for n in range(500) for city in [r.choice(CITIES)]]
    city = r.choice(CITIES)
    mean = statistics.fmean(row[2] for row in rows if row[1] == city)
    question = f"What is the average score of the answers from {city}? Give two decimals."
    return question, table("answer_id,city,score", rows), [f"{mean:.2f}"]


@kind
def csv_max(r: random.Random) -> Made:
    kinds = ("lamp", "chair", "desk", "shelf")
    prices = r.sample(range(20, 900), 120)
    rows = [(f"{r.choice('ABCDEFGH')}{n:03}", r.choice(kinds), price) for n, price in enumerate(prices)]
    wanted = r.choice(kinds)
    best = max((row for row in rows if row[1] == wanted), key=lambda row: row[2])
    question = f"What is the code of the most expensive {wanted}?"
    return question, table("code,type,price", rows), [best[0]]


@kind
def revenue(r: random.Random) -> Made:
    kinds = ("tea", "coffee", "cocoa", "juice")
    rows = [(n, r.choice(kinds), r.randrange(1, 30), money(r, 2, 20)) for n in range(250)]
    sums: dict[str, float] = defaultdict(float)
    for _, category, quantity, price in rows:
        sums[category] += quantity * float(price)
    top = max(sums, key=lambda category: sums[category])
    question = "Revenue is quantity times price. Which category has the highest revenue, and how much is it?"
    return question, table("sale,category,quantity,price", rows), [f"{top}&{sums[top]:.2f}"]


@kind
def date_range(r: random.Random) -> Made:
    rows = [(n, day(r, "2026-01-01", 365), r.choice(CITIES)) for n in range(500)]
    first = day(r, "2026-02-01", 120)
    last = (dt.date.fromisoformat(first) + dt.timedelta(days=r.randrange(20, 90))).isoformat()
    count = sum(first <= row[1] <= last for row in rows)
    question = f"How many bookings have a date from {first} to {last}, both days included?"
    return question, table("booking,date,city", rows), [str(count)]


@kind
def percent(r: random.Random) -> Made:
    rows = [(n, r.choice(("ok", "ok", "ok", "failed")), r.randrange(10, 500)) for n in range(r.randrange(300, 500))]
    share = 100 * sum(row[1] == "failed" for row in rows) / len(rows)
    question = "What percentage of the payments has the status failed? Give two decimals."
    return question, table("payment,status,ms", rows), [f"{share:.2f}"]


@kind
def join(r: random.Random) -> Made:
    homes = {100 + n: r.choice(CITIES) for n in range(60)}
    orders = [(n, r.choice(list(homes)), money(r, 5, 90)) for n in range(300)]
    city = r.choice(list(homes.values()))
    total = sum(float(order[2]) for order in orders if homes[order[1]] == city)
    files = {"customers.csv": table("customer_id,city", list(homes.items())), "orders.csv": ""}
    files["orders.csv"] = table("order_id,customer_id,amount", orders)
    return f"What is the total amount of the orders of customers who live in {city}?", files, [f"{total:.2f}"]


@kind
def fifth(r: random.Random) -> Made:
    rows = [(f"river-{n}", length) for n, length in enumerate(r.sample(range(40, 4000), 150))]
    name = sorted(rows, key=lambda row: -row[1])[4][0]
    return "Which river is the fifth longest?", table("river,km", rows), [name]


# --- logs ----------------------------------------------------------------------------------------------------------


def log(r: random.Random, lines: int) -> list[tuple[str, str, str, str]]:
    """Time, level, service, message; the times are strictly ascending."""
    now, found = dt.datetime(2026, 5, 4, 6), []
    for _ in range(lines):
        now += dt.timedelta(seconds=r.randrange(1, 7))
        level = r.choice(("DEBUG", "INFO", "INFO", "INFO", "INFO", "WARNING", "ERROR"))
        text = f"job {r.randrange(10**5)} finished in {r.randrange(3, 950)} ms"
        found.append((now.strftime("%Y-%m-%d %H:%M:%S"), level, r.choice(SERVICES), text))
    return found


def as_text(lines: list[tuple[str, str, str, str]]) -> str:
    return "\n".join(f"{when} [{level}] {service}: {text}" for when, level, service, text in lines) + "\n"


@kind
def log_count(r: random.Random) -> Made:
    lines = log(r, 12_000)
    count = sum(line[1] == "WARNING" for line in lines)
    return "How many log lines have the level WARNING?", as_text(lines), [str(count)]


@kind
def log_first(r: random.Random) -> Made:
    service, quiet = r.choice(SERVICES), r.randrange(2000, 5000)
    lines = [line for n, line in enumerate(log(r, 8000)) if n > quiet or line[1:3] != ("ERROR", service)]
    first = next(when for when, level, who, _ in lines if (level, who) == ("ERROR", service))
    return (
        f"At what time is the first ERROR of the service {service}? Give date and time.",
        as_text(lines),
        [first, first.replace(" ", "T")],
    )


@kind
def last_before(r: random.Random) -> Made:
    lines = log(r, 3000)
    moment = lines[r.randrange(1000, 2900)][0]
    job = next(text.split()[1] for when, level, _, text in reversed(lines) if when < moment and level == "ERROR")
    question = f"Look at the last ERROR line before {moment}, not at that time itself. Which job number does it name?"
    return question, as_text(lines), [job]


@kind
def log_window(r: random.Random) -> Made:
    lines = log(r, 4000)
    low = r.randrange(500, 2000)
    first, last = lines[low][0], lines[low + r.randrange(100, 1500)][0]
    count = sum(first <= line[0] <= last for line in lines)
    question = f"How many log lines are there from {first} to {last}, both included?"
    return question, as_text(lines), [str(count)]


@kind
def slowest(r: random.Random) -> Made:
    totals: dict[str, list[int]] = defaultdict(list)
    lines = log(r, 2000)
    for _, _, service, text in lines:
        totals[service].append(int(text.split()[-2]))
    service = max(totals, key=lambda name: statistics.fmean(totals[name]))
    question = "Which service has the highest average time in ms?"
    return question, as_text(lines), [service]


@kind
def addresses(r: random.Random) -> Made:
    pool = [".".join(str(r.randrange(1, 255)) for _ in range(4)) for _ in range(r.randrange(60, 150))]
    pages = ("/", "/cart", "/login", "/help")
    lines = [f'{r.choice(pool)} "GET {r.choice(pages)}" {r.choice((200, 200, 404))}' for _ in range(900)]
    count = len({line.split()[0] for line in lines})
    return "How many different IP addresses made these requests?", "\n".join(lines), [str(count)]


# --- JSON ----------------------------------------------------------------------------------------------------------


@kind
def json_unique(r: random.Random) -> Made:
    records = [{"id": n, "user": f"user{r.randrange(250)}", "device": r.choice(("tv", "pc"))} for n in range(450)]
    count = len({record["user"] for record in records})
    return "How many different users are there in these records?", json.dumps(records), [str(count)]


@kind
def json_nested(r: random.Random) -> Made:
    plans = ("free", "team", "pro")
    records = [{"id": n, "account": {"plan": r.choice(plans), "active": r.random() < 0.6}} for n in range(320)]
    plan = r.choice(plans)
    count = sum(record["account"] == {"plan": plan, "active": True} for record in records)
    question = f"How many records have an active account with the plan {plan}?"
    return question, json.dumps(records, indent=1), [str(count)]


@kind
def most_items(r: random.Random) -> Made:
    sizes = r.sample(range(1, 120), 60)
    carts = {f"cart-{n:02}": [r.randrange(1000, 9999) for _ in range(size)] for n, size in enumerate(sizes)}
    name = max(carts, key=lambda cart: len(carts[cart]))
    return "Which cart has the most items, and how many?", json.dumps(carts), [f"{name}&{len(carts[name])}"]


# --- lists and plain text ------------------------------------------------------------------------------------------


@kind
def median(r: random.Random) -> Made:
    numbers = [r.randrange(100, 10_000) for _ in range(701)]
    question = "What is the median of these numbers, one a line?"
    return question, "\n".join(map(str, numbers)), [str(statistics.median(numbers))]


@kind
def duplicate(r: random.Random) -> Made:
    numbers = [f"SN{number}" for number in r.sample(range(10_000, 99_999), 500)]
    twice = r.choice(numbers[:200])
    numbers.insert(r.randrange(300, 500), twice)
    return "One serial number occurs twice. Which one?", "\n".join(numbers), [twice]


@kind
def gap(r: random.Random) -> Made:
    days = sorted(r.sample(range(800), 130))
    longest = max(later - earlier for earlier, later in itertools.pairwise(days))
    start = dt.date(2024, 1, 1)
    dates = "\n".join((start + dt.timedelta(days=number)).isoformat() for number in days)
    return (
        "These inspection dates are sorted. How many days is the longest time between two of them that follow each "
        "other?",
        dates,
        [str(longest)],
    )


@kind
def word(r: random.Random) -> Made:
    words = ("anchor", "basket", "candle", "dragon", "engine", "forest", "garden", "hammer")
    often = r.choice(words)
    text = [r.choice((*words, often)) for _ in range(2500)]
    lines = "\n".join(" ".join(text[start : start + 12]) for start in range(0, len(text), 12))
    question = "Which word occurs most often in this text, and how many times?"
    return question, lines, [f"{often}&{text.count(often)}"]


@kind
def longest_line(r: random.Random) -> Made:
    sizes = r.sample(range(20, 600), 250)
    lines = ["".join(r.choice("abcdefgh ") for _ in range(size - 1)) + "." for size in sizes]
    number = sizes.index(max(sizes)) + 1
    question = "What is the number of the longest line, and how many characters does it have? The first line is 1."
    return question, "\n".join(lines), [f"{number}&{max(sizes)}"]


@kind
def line_number(r: random.Random) -> Made:
    lines = [f"Note {r.randrange(10**6)}: the {r.choice(('pump', 'valve', 'fan'))} was checked." for _ in range(1500)]
    number = r.randrange(200, 1400)
    lines[number - 1] = f"Note {r.randrange(10**6)}: the boiler was replaced."
    question = "On which line does the phrase 'the boiler was replaced' occur? The first line is number 1."
    return question, "\n".join(lines), [str(number)]


@kind
def codes(r: random.Random) -> Made:
    filler = ("Please send", "We received", "The customer asked about", "There is no stock of")
    made = [f"{r.choice(('KX', 'RB', 'ZT'))}-{r.randrange(1000, 1400)}" for _ in range(400)]
    text = "\n".join(f"{r.choice(filler)} {code}, {r.choice(('thanks', 'urgent', 'again'))}." for code in made)
    question = "Order codes look like KX-1234. How many different order codes are there that begin with KX?"
    return question, text, [str(len({code for code in made if code.startswith("KX")}))]


@kind
def difference(r: random.Random) -> Made:
    people = [f"{first}.{last}" for first in ("ana", "ben", "cho", "dia", "eli") for last in "abcdefghijklmnop"]
    r.shuffle(people)
    missing = r.choice(people)
    paid = [person for person in people if person != missing] + ["guest.one", "guest.two"]
    r.shuffle(paid)
    files = {"invited.txt": "\n".join(people), "paid.txt": "\n".join(paid)}
    return "Who is in invited.txt but not in paid.txt?", files, [missing]


@kind
def needle(r: random.Random) -> Made:
    filler = "Rain fell on the roofs. A dog slept by the door. The kettle began to sing. Nobody said a word. "
    code = str(r.randrange(100_000, 999_999))
    text = filler * r.randrange(400, 1800) + f"The access code of the lighthouse is {code}. " + filler * 900
    return "What is the access code of the lighthouse?", text, [code]


@kind
def inventory(r: random.Random) -> Made:
    items: list[dict[str, Any]] = [{"sku": f"P{n:04}", "stock": r.randrange(0, 40)} for n in r.sample(range(2000), 260)]
    low = r.randrange(4, 12)
    count = sum(item["stock"] < low for item in items)
    return f"How many items have a stock below {low}?", items, [str(count)]


# --- folders -------------------------------------------------------------------------------------------------------


@kind
def files(r: random.Random) -> Made:
    limit = r.randrange(15, 95)
    found = {
        "docs/login.md": "# Login\nSessions end after 20 minutes.\nPasswords have at least 12 characters.\n",
        "docs/storage.md": f"# Storage\nFiles are kept for a year.\nThe upload limit is {limit} MB a file.\n",
        "docs/mail.md": "# Mail\nBounced messages are tried 3 times.\n",
        "docs/search.md": "# Search\nThe index is rebuilt at 02:00.\nAt most 50 hits are shown.\n",
    }
    return "Which file states the upload limit, and what is the limit?", found, [f"storage.md&{limit}"]


@kind
def config(r: random.Random) -> Made:
    keys = ("timeout", "retries", "cache_ttl", "pool_size", "batch")
    found, where, key = {}, r.choice(("dev", "staging", "production")), r.choice(keys)
    values = iter(r.sample(range(100, 999), 15))
    for name in ("dev", "staging", "production"):
        found[f"conf/{name}.env"] = "# settings\n" + "".join(f"{one}={next(values)}\n" for one in keys)
    value = re.search(rf"^{key}=(\d+)$", found[f"conf/{where}.env"], re.MULTILINE)
    assert value
    return f"What is the value of {key} in {where}?", found, [value[1]]


@kind
def todos(r: random.Random) -> Made:
    counts = r.sample(range(1, 30), 12)
    found = {}
    for n, count in enumerate(counts):
        lines = [f"value_{i} = {r.randrange(100)}" for i in range(60)] + [f"# TODO: step {i}" for i in range(count)]
        r.shuffle(lines)
        found[f"src/module_{n:02}.py"] = "\n".join(lines) + "\n"
    name = f"module_{counts.index(max(counts)):02}.py"
    return "Which file has the most lines with TODO, and how many?", found, [f"{name}&{max(counts)}"]


@kind
def largest(r: random.Random) -> Made:
    sizes = r.sample(range(200, 5000), 15)
    found = {f"data/part{n}.txt": "".join(r.choice("xyz\n") for _ in range(size)) for n, size in enumerate(sizes)}
    number = sizes.index(max(sizes))
    question = "Which file is the longest, and how many characters does it have?"
    return question, found, [f"part{number}.txt&{max(sizes)}"]


# --- reading -------------------------------------------------------------------------------------------------------


@kind
def reviews(r: random.Random) -> Made:
    happy = ["Sturdy, quiet and cheap.", "The guide was funny and knew everything.", "Delicious soup, nice people.",
             "Exactly what I had hoped for.", "My son plays with it every day.", "Five stars, no doubt."]  # fmt: skip
    angry = ["The handle came off in my hand.", "We waited two hours and then left.", "It smells of glue.",
             "The worst night of our trip.", "Do not buy this.", "Stopped working within a week."]  # fmt: skip
    count = r.randrange(2, 6)
    context = r.sample(happy, 9 - count if count > 2 else 6) + r.sample(angry, count)
    r.shuffle(context)
    words = {2: "two", 3: "three", 4: "four", 5: "five"}
    return "How many of these reviews are negative?", context, [str(count), words[count]]


@kind
def topic(r: random.Random) -> Made:
    notes = ["The seedlings need water twice a day.", "Her bicycle has a flat tyre again.",
             "He practises scales on the piano before breakfast.", "The bus to the station was late."]  # fmt: skip
    r.shuffle(notes)
    number = next(n for n, text in enumerate(notes, 1) if "piano" in text)
    text = "\n".join(f"{n}. {note}" for n, note in enumerate(notes, 1))
    return "Which note is about music? Give its number.", text, [str(number)]


@kind
def refund(r: random.Random) -> Made:
    texts = ["Could you send the parcel to my office instead?", "How long is the warranty?",
             "I never received my order and would like my money back.", "Do you also sell spare filters?",
             "Please change the name on my account."]  # fmt: skip
    r.shuffle(texts)
    mails = {f"mail_{n}.txt": text for n, text in zip(r.sample(range(10, 99), 5), texts)}
    name = next(name for name, text in mails.items() if "money back" in text)
    return "Which mail asks for a refund?", mails, [name.removesuffix(".txt")]


@kind
def french(r: random.Random) -> Made:
    lines = ["Der Zug ist heute pünktlich.", "Il fait très froid ce matin.", "La casa tiene un jardín pequeño.",
             "The library closes at six.", "Il gatto dorme sul divano."]  # fmt: skip
    r.shuffle(lines)
    text = "\n".join(f"{n}: {line}" for n, line in enumerate(lines, 1))
    number = next(n for n, line in enumerate(lines, 1) if "froid" in line)
    return "Which line is in French? Give its number.", text, [str(number)]


@kind
def reason(r: random.Random) -> Made:
    causes = {"storm": "A storm had closed the harbour", "strike": "The dockers were on strike",
              "customs": "Customs held the papers for three days"}  # fmt: skip
    cause = r.choice(list(causes))
    text = (f"Minutes, {day(r, '2026-03-01', 60)}\nPresent: {', '.join(r.sample(PEOPLE, 3))}.\nThe budget passed. "
            f"The shipment came a week late. {causes[cause]}, so nothing could be unloaded. The next meeting is in "
            "June.\n")  # fmt: skip
    return "Why was the shipment late? Answer in one sentence.", text, [cause]


@kind
def contracts(r: random.Random) -> Made:
    old, new = r.sample((350, 480, 620, 790, 910), 2)
    lease = (
        "Lease of {}\nThe flat has three rooms.\nThe rent is {} euros a month.\nPets are allowed.\nThe deposit is two "
        "months' rent.\n"
    )
    both = {"lease_2025.txt": lease.format(2025, old), "lease_2026.txt": lease.format(2026, new)}
    return "What changed between the two leases? Give the old and the new figure.", both, [f"{old}&{new}"]


# --- real data -----------------------------------------------------------------------------------------------------

LABELS = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}
CLASSES = (
    "Each item of the list is a question. By the kind of answer it asks for, it belongs to exactly one class: "
    "abbreviation (an abbreviation or what it stands for), description (a definition, a reason, a manner), entity (a "
    "thing, an animal, a colour, a word, a work), human (a person or a group), location (a place), number (a count, a "
    "date, an amount). The list does not say which. "
)
QUESTIONS = 100  # in a list to be counted


class Data(NamedTuple):
    """Real data, read from a folder with trec/train.txt, trec/test.txt and prose/moby-dick.txt."""

    questions: list[tuple[str, str]]  # label, text
    prose: str

    @classmethod
    def read(cls, folder: Path) -> Data:
        try:
            questions = "\n".join(
                (folder / "trec" / f"{name}.txt").read_text("utf-8", "replace") for name in ("train", "test")
            )
            prose = (folder / "prose" / "moby-dick.txt").read_text("utf-8", "replace")
        except OSError as error:
            raise SystemExit(
                f"--data {folder}: {error.strerror}: {error.filename} (docs/evaluation.md says what it holds)"
            ) from None
        pairs = [line.partition(" ") for line in questions.splitlines() if line.strip()]
        return cls([(LABELS[fine.partition(":")[0]], text.strip()) for fine, _, text in pairs], prose)


def trec_count(r: random.Random, data: Data) -> Task:
    chosen = r.sample(data.questions, QUESTIONS)
    label = r.choice(("human", "location", "number", "entity"))
    question = CLASSES + f"How many of the questions belong to the class {label}? Answer with the number only."
    count = sum(one == label for one, _ in chosen)
    return Task("trec_count", question, [text for _, text in chosen], [str(count)], "count")


def trec_most(r: random.Random, data: Data) -> Task:
    """The winner leads by enough to be found with a few questions classified wrongly."""
    label = r.choice(("human", "location", "number"))
    others = [one for one in data.questions if one[0] != label]
    chosen = r.sample([one for one in data.questions if one[0] == label], 40) + r.sample(others, QUESTIONS - 40)
    r.shuffle(chosen)
    most = Counter(one for one, _ in chosen).most_common(1)[0][0]
    question = CLASSES + "Which class do most of the questions belong to? Answer with the name of the class only."
    return Task("trec_most", question, [text for _, text in chosen], [most], "label")


def trec_compare(r: random.Random, data: Data) -> Task:
    more, less = r.sample(("human", "location", "number"), 2)
    by_label = {label: [one for one in data.questions if one[0] == label] for label in LABELS.values()}
    chosen = r.sample(by_label[more], 30) + r.sample(by_label[less], 15) + r.sample(by_label["description"], 55)
    r.shuffle(chosen)
    pair = " or ".join(sorted((more, less)))
    question = CLASSES + f"Which class is more frequent, {pair}? Answer with the name of the class only."
    return Task("trec_compare", question, [text for _, text in chosen], [more], "label")


def hide(r: random.Random, prose: str, sentences: list[str]) -> str:
    """The sentences as paragraphs of their own, at random places."""
    paragraphs = prose.split("\n\n")
    for sentence in sentences:
        paragraphs.insert(r.randrange(1000, len(paragraphs)), sentence)
    return "\n\n".join(paragraphs)


def prose_needle(r: random.Random, data: Data) -> Task:
    number = str(r.randrange(10_000, 99_999))
    text = hide(r, data.prose, [f"The secret number of the carpenter's chest is {number}."])
    return Task("prose_needle", "What is the secret number of the carpenter's chest?", text, [number])


def prose_needles(r: random.Random, data: Data) -> Task:
    names = ("red", "green", "blue")
    numbers = r.sample(range(1000, 9999), 3)
    lines = [f"The number of the {name} locker is {number}." for name, number in zip(names, numbers)]
    question = "The text gives the numbers of a red, a green and a blue locker. What is their sum?"
    return Task("prose_needles", question, hide(r, data.prose, lines), [str(sum(numbers))])


def prose_chapter(r: random.Random, data: Data) -> Task:
    """The chapter headings stand in the table of contents too: the text of a chapter follows the second one."""
    heads = list(re.finditer(r"^CHAPTER (\d+)\.", data.prose, re.MULTILINE))
    place = r.choice(heads[len(heads) // 2 + 5 : -5])
    end = data.prose.index("\n\n", place.end() + 500)
    sentence = f"On the cabin door someone had carved the word {r.choice(('zwieback', 'quixotry', 'jackdaw'))}-seven."
    text = f"{data.prose[:end]}\n\n{sentence}{data.prose[end:]}"
    question = f"In which chapter does this sentence occur? Give its number. '{sentence}'"
    chapter = [head[1] for head in heads if head.start() < end][-1]  # a very short chapter may have ended before
    return Task("prose_chapter", question, text, [chapter])


DATA_KINDS: dict[str, Callable[[random.Random, Data], Task]] = {
    make.__name__: make for make in (trec_count, trec_most, trec_compare, prose_needle, prose_needles, prose_chapter)
}


# --- scores --------------------------------------------------------------------------------------------------------


def score(answer: Any, task: Task) -> float:
    """1.0 for a right answer, 0.0 for a wrong one; for a count 0.75 ** |difference|, as OOLONG scores them."""
    text = str(answer if answer is not None else "")
    if len(text) > LONGEST_ANSWER:
        return 0.0
    if task.scoring == "count":
        return near(text, int(task.wanted[0]))
    if task.scoring == "label":
        return float(label_in(text) == task.wanted[0])
    return float(any(all(has(text, part) for part in form.split("&")) for form in task.wanted))


def has(text: str, part: str) -> bool:
    """A number counts however it is written: 1,224 or 1224.00; a word counts in any case."""
    if not re.fullmatch(r"\d+(\.\d+)?", part):
        return re.search(rf"(?<![a-z0-9]){re.escape(part.lower())}(?![a-z0-9])", text.lower()) is not None
    return any(abs(number - float(part)) < 0.006 for number in numbers_in(text))


def numbers_in(text: str) -> list[float]:
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return [float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", plain)]


def near(text: str, wanted: int) -> float:
    """By the first number after the last colon, as OOLONG reads an answer."""
    found = numbers_in(text.rpartition(":")[2]) or numbers_in(text)
    return 0.75 ** min(abs(found[0] - wanted), 100) if found else 0.0


def label_in(text: str) -> str | None:
    """The label after the last colon, or the only one that the answer names."""
    last = text.rpartition(":")[2].strip(" \n\t.\"'*`").lower()
    named = {label for label in LABELS.values() if re.search(rf"\b{label}s?\b", text.lower())}
    return last if last in LABELS.values() else named.pop() if len(named) == 1 else None
