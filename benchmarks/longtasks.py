"""Tasks over long texts with known answers, made from a seed, and how their answers are scored.

A needle in a haystack as in RULER (arXiv 2404.06654), counts over entries that have to be classified as in OOLONG
(arXiv 2511.02817), and pairs of users as in OOLONG-Pairs (arXiv 2512.24601). All text is made here; docs/evaluation.md
says what differs. Needs only the standard library, and memory for one text.
"""

from __future__ import annotations

import datetime
import io
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

GENERATOR = 1  # a part of every sample's seed and of every result's identity: raise it when samples change
CHARACTERS_PER_TOKEN = 4.0
TASKS = ("needle", "counts", "pairs")


class Sample(NamedTuple):
    """A task with its answer. `scoring` names the function that compares a response with `expected`."""

    task: str
    kind: str
    question: str
    context: str
    expected: Any
    scoring: str


# --- text ----------------------------------------------------------------------------------------------------------

WORDS = """
abbr: ABM BSX CNP DRT EFC FGL GHT HRV ICQ JPS KLM LTD MPQ NVC OEP PFR QRS RTU SGV TWB UXD VAL WZT XBO YKA ZNI
adjective: amber ancient bitter brisk broad calm clever copper dim eager faint gentle hollow humble idle jolly keen
    lively mellow narrow noble pale plain quiet rapid rough silver slow solemn steady sturdy subtle tidy vast warm
    wild
animal: badger beaver buffalo camel cobra crane deer dolphin eagle falcon ferret fox gecko goose hare heron hyena
    jackal lemur lizard lynx magpie mole moose otter owl panda pelican puffin rabbit raven seal stork tapir walrus
    wolf
city: Almara Bergholt Cantalo Dravik Estova Farnley Gravina Holmar Istrel Jorvana Kessin Lorvane Mirande Norwick
    Ostrava Pelham Quillon Rosmere Selby Tarvos Ulmstad Valdera Wexmoor Yarrow Zelhem Ardent Brindle Corvik Dunmore
job: actor architect astronaut baker chemist composer dancer doctor engineer explorer farmer general inventor king
    lawyer mayor nurse painter philosopher pilot poet president queen sailor sculptor singer swimmer teacher
stuff: amber basalt brass chalk clay coal copper cotton flour glass granite honey iron ivory lead linen marble mercury
    milk nickel oil paper pepper resin rubber salt sand silk silver soap steel sugar tin vinegar wax wool zinc
thing: anchor balloon barrel basket bicycle camera candle canoe carpet clock compass drum flute guitar hammer kettle
    kite ladder lamp lantern lens lock loom mirror needle oven piano plough pump ribbon saddle sextant spade telescope
    tent typewriter umbrella violin wagon wheel
venue: abbey airport aquarium arena bakery barracks brewery castle cathedral cinema factory fort gallery hospital
    library lighthouse market mill monastery museum observatory palace prison school stadium station temple theatre
verb: dig drum float glow hibernate howl hunt limp migrate play purr roll shed sing sleep squeak swim yawn
"""
POOLS = {name: words.split() for name, words in re.findall(r"^(\w+): (.*\n(?:    .*\n)*)", WORDS, re.MULTILINE)} | {
    "year": [str(year) for year in range(1700, 2000, 7)]
}

KINDS = {
    "abbreviation": "the short form of a name, or what a short form means",
    "description": "an explanation: a definition, a reason, a manner, a difference",
    "entity": "a thing that is neither a person nor a place: an animal, a product, a language, a sport, a colour, …",
    "human": "a person or a group of persons",
    "location": "a place: a city, a country, a river, a building's whereabouts, …",
    "number": "a number: a count, a date or year, a measure, a price, a share",
}
# First words do not tell: each kind has its "What is …", and the same things turn up in all of them.
QUESTIONS = {
    "abbreviation": (
        "What does {abbr} stand for in the papers of the {venue} of {city}?",
        "What is the full form of {abbr}, as a {job} would write it?",
        "How is the name of the {venue} of {city} abbreviated?",
        "What do the letters {abbr} on a {thing} mean?",
        "Which words make up the acronym {abbr} in a trade with {stuff}?",
        "What is the usual abbreviation for the {adjective} {venue} of {city}?",
        "What does {abbr} stand for when it is stamped on {stuff}?",
        "When {city} writes {abbr} on its {stuff}, how is that spelled out?",
    ),
    "description": (
        "Why do {animal}s {verb} near {stuff}?",
        "What is a {adjective} {thing}, in the words of a {job}?",
        "How does a {stuff} {thing} work?",
        "What is the difference between a {thing} and a {adjective} {thing}?",
        "What is the origin of the word '{thing}' in {city}?",
        "How do you get {stuff} off a {thing}?",
        "What causes {stuff} to crack in a {venue}?",
        "What happened to the {venue} of {city} in {year}?",
        "How did the {adjective} {animal} get its name?",
        "What is the purpose of a {venue} made of {stuff}?",
        "How can a {job} tell {stuff} from {adjective} {stuff}?",
        "What is it like to be a {job} in {city}?",
    ),
    "entity": (
        "What animal eats {stuff} in the {venue} of {city}?",
        "Which colour is the {animal} on the flag of {city}?",
        "What language did the {job}s of {city} speak in {year}?",
        "Which instrument sounds like a {adjective} {animal}?",
        "What is the favourite food of a {animal} in {city}?",
        "Name a plant that grows on {stuff} near {city}.",
        "What kind of {thing} does a {job} use in {city}?",
        "Which disease do {animal}s bring to {city}?",
        "What sport needs a {thing} and a {stuff} ball?",
        "Which novel of {year} begins with a {animal} in a {venue}?",
        "What metal is used with {stuff} in a {thing}?",
        "What brand of {thing} is sold at the {venue} of {city}?",
    ),
    "human": (
        "Who invented the {stuff} {thing}?",
        "Which {job} was born in {city} in {year}?",
        "What {job} first crossed the bay of {city} with a {animal}?",
        "Name the {job} who kept a {animal} in the {venue} of {city}.",
        "Whose {thing} was stolen from the {venue} of {city}?",
        "By whom was the {venue} of {city} rebuilt in {year}?",
        "What family owned the {stuff} mines of {city}?",
        "Who was the first {job} at the {venue} of {city}?",
        "Which team of {job}s won the {thing} race of {city} in {year}?",
        "To whom did {city} give its {adjective} {thing} in {year}?",
    ),
    "location": (
        "Where do {adjective} {animal}s {verb} in winter?",
        "What city has the oldest {venue} built of {stuff}?",
        "Which country sold the most {stuff} in {year}?",
        "Name the river that runs past the {venue} of {city}.",
        "On which island was the {stuff} {thing} found in {year}?",
        "Where was the first {thing} of {stuff} made?",
        "In which town did the {job} of {city} die?",
        "What street in {city} is named after a {animal}?",
        "Through which valley do {job}s carry {stuff} to {city}?",
        "Which mountain is seen from the {venue} of {city}?",
        "In what part of the world do {animal}s {verb}?",
    ),
    "number": (
        "How many {thing}s does the {venue} of {city} own?",
        "What is the population of {city}, {job}s included?",
        "In what year did {city} open its {adjective} {venue}?",
        "How tall is the {venue} of {city}?",
        "What does a {stuff} {thing} weigh?",
        "How long does a {adjective} {animal} live in {city}?",
        "At what temperature does {stuff} from {city} melt?",
        "What share of {city} is covered with {stuff}?",
        "How far is it from {city} to the {adjective} {venue}?",
        "What was the price of a {thing} in {city} in {year}?",
        "When did a {job} first bring {stuff} to {city}?",
        "How often does a {job} of {city} need a new {thing}?",
    ),
}
NOISE = "The river is wide. The road is dry. The bread is warm. A cart goes by. It will come back.\n"
ESSAY = (
    "A {job} of {city} once wrote that a {adjective} {thing} teaches more than a {adjective} {venue}.",
    "Most people who work with {stuff} learn early that a {adjective} start is better than a {adjective} end.",
    "In {year} the {venue} of {city} was {adjective}, and nobody asked the {job} why.",
    "What looks {adjective} to a {job} may look {adjective} to a {animal}.",
    "The trouble with {stuff} is that it stays {adjective} long after the {thing} is gone.",
    "If you want to build a {thing}, do not begin with {stuff}; begin with what the {job} needs.",
    "There was a {adjective} year when {city} sold its {stuff} for a single {thing}.",
    "I used to think that every {venue} needs a {job}, until I saw {city}.",
)


def filler(template: str) -> tuple[str, tuple[list[str], ...]]:
    """A template as a %-format and the pools of its places: filling it in is the generator's inner loop."""
    names = re.findall(r"\{(\w+)\}", template)
    return re.sub(r"\{\w+\}", "%s", template), tuple(POOLS[name] for name in names)


def fill(rng: random.Random, form: tuple[str, tuple[list[str], ...]]) -> str:
    return form[0] % tuple(pool[int(rng.random() * len(pool))] for pool in form[1])


FORMS = {kind: [filler(template) for template in templates] for kind, templates in QUESTIONS.items()}


# --- the needle ----------------------------------------------------------------------------------------------------

NEEDLE_KINDS = (("noise", "number"), ("essay", "number"), ("essay", "UUID"), ("noise", "word"))
DEPTHS = 40


def needle(rng: random.Random, characters: int, seed: int) -> Sample:
    """One line that matters, at one of forty depths, in repeated noise or in an essay of sorts."""
    haystack, what = NEEDLE_KINDS[seed % len(NEEDLE_KINDS)]
    key = f"{rng.choice(POOLS['adjective'])}-{rng.choice(POOLS['thing'])}"
    value = {
        "number": str(rng.randrange(10**6, 10**7)),
        "UUID": _uuid(rng),
        "word": f"{rng.choice(POOLS['adjective'])}-{rng.choice(POOLS['animal'])}",
    }[what]
    question = (
        f"A special magic {what} is hidden somewhere in the text. What is the special magic {what} for {key}? "
        f"Answer with the {what} alone."
    )
    line = f"The special magic {what} for {key} is {value}.\n"
    room = max(0, characters - len(question) - len(line) - 2)
    lines = noise(room) if haystack == "noise" else essay(rng, room)
    at = round(rng.randrange(DEPTHS) / (DEPTHS - 1) * room)
    return Sample("needle", f"{haystack}, {what}", question, _insert(lines, at, line), value, "contains")


def _uuid(rng: random.Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], f"4{digits[13:16]}", f"a{digits[17:20]}", digits[20:]))


def noise(room: int) -> Iterator[str]:
    return itertools.repeat(NOISE, room // len(NOISE))


def essay(rng: random.Random, room: int) -> Iterator[str]:
    """Paragraphs of sentences that read like an essay's and mean nothing, up to `room` characters."""
    forms = [filler(template) for template in ESSAY]
    while True:
        paragraph = " ".join(fill(rng, rng.choice(forms)) for _ in range(rng.randrange(3, 8))) + "\n"
        if len(paragraph) > room:
            return
        room -= len(paragraph)
        yield paragraph


def _insert(lines: Iterator[str], at: int, line: str) -> str:
    out = io.StringIO()
    for text in lines:
        if at <= 0 and line:
            out.write(line)
            line = ""
        at -= len(text)
        out.write(text)
    out.write(line)
    return out.getvalue()


# --- classified entries --------------------------------------------------------------------------------------------

FIRST_DAY, DAYS = datetime.date(2022, 1, 1), 1096
DATES = [(FIRST_DAY + datetime.timedelta(n)).isoformat() for n in range(DAYS)]
SHARES = (30, 22, 17, 13, 10, 8)
MOST_USERS, ENTRIES_PER_USER = 120, 12
INTRODUCTION = (
    "Each line of the data has a date, a user and a question which that user asked on that day. Every question can be "
    "labelled by the kind of thing that it asks for; the data does not give the labels, they have to be found from "
    "what each question means:\n" + "\n".join(f"- {kind}: {meaning}" for kind, meaning in KINDS.items())
)
ENTRY = "Date: {} || User: {} || Question: {}\n"


class Entries:
    """The data as a text, and what was counted while it was written: the entries themselves are not kept."""

    def __init__(self) -> None:
        self.text = ""
        self.users: list[int] = []
        self.by_user: Counter[tuple[int, str]] = Counter()
        self.by_date: Counter[tuple[str, str]] = Counter()
        self.earliest: dict[tuple[int, str], str] = {}

    @property
    def totals(self) -> dict[str, int]:
        found = dict.fromkeys(KINDS, 0)
        for (_, kind), number in self.by_user.items():
            found[kind] += number
        return found

    def add(self, date: str, user: int, kind: str) -> None:
        self.by_user[user, kind] += 1
        self.by_date[date, kind] += 1
        self.earliest[user, kind] = min(date, self.earliest.get((user, kind), date))

    def asked(self, user: int, kind: str) -> bool:
        return self.by_user[user, kind] > 0


class Habits(NamedTuple):
    """What users ask: the kinds of each (all, where a user is not in it), and from which day on for some."""

    kinds: dict[int, tuple[str, ...]]
    since: dict[tuple[int, str], int]  # (user, kind) -> the first day


def entries(rng: random.Random, room: int, habits: Callable[[list[int]], Habits]) -> Entries:
    """Entries up to `room` characters, by users of whom a few ask much; `habits` is given the users."""
    made = Entries()
    most = max(4, min(MOST_USERS, room // 95 // ENTRIES_PER_USER))
    made.users = rng.sample(range(10_000, 100_000), most)
    habit = habits(made.users)
    busy = list(itertools.accumulate(1 / (n + 5) for n in range(most)))
    kinds = rng.sample(list(KINDS), len(KINDS))
    shares = list(itertools.accumulate(SHARES))
    out = io.StringIO()
    while True:
        for user in rng.choices(made.users, cum_weights=busy, k=512):
            kind = rng.choices(kinds, cum_weights=shares)[0]
            if user in habit.kinds and kind not in habit.kinds[user]:
                kind = rng.choice(habit.kinds[user])
            date = DATES[rng.randrange(habit.since.get((user, kind), 0), DAYS)]
            line = ENTRY.format(date, user, fill(rng, rng.choice(FORMS[kind])))
            if len(line) > room:
                made.text = out.getvalue()
                return made
            room -= len(line)
            out.write(line)
            made.add(date, user, kind)


def no_habits(users: list[int]) -> Habits:
    return Habits({}, {})


# --- counts over them ----------------------------------------------------------------------------------------------

LONGEST_QUESTION = 1500  # characters kept free for it: which one is asked is decided when the data is there


class Asked(NamedTuple):
    kind: str
    question: str
    expected: Any
    scoring: str


def counts(rng: random.Random, characters: int, seed: int) -> Sample:
    """One of seven questions on the labels of all entries, or of some users' or days'."""
    data = entries(rng, characters - LONGEST_QUESTION, no_habits)
    ask = COUNT_KINDS[seed % len(COUNT_KINDS)]
    asked = ask(rng, data) or how_many(rng, data)
    return Sample("counts", asked.kind, f"{INTRODUCTION}\n\n{asked.question}", data.text, asked.expected, asked.scoring)


def how_many(rng: random.Random, data: Entries) -> Asked:
    kind = rng.choice(list(KINDS))
    question = f"In the data, how many questions have the label '{kind}'? Answer in the form 'Answer: number'."
    return Asked("number", question, data.totals[kind], "number")


def extreme(rng: random.Random, data: Entries) -> Asked | None:
    """The most or the least common label; None if two share the place."""
    word, choose = rng.choice((("most", max), ("least", min)))
    totals = data.totals
    wanted = choose(totals.values())
    if list(totals.values()).count(wanted) > 1:
        return None
    label = next(kind for kind, number in totals.items() if number == wanted)
    question = (
        f"In the data, which label is the {word} common? Answer in the form 'Label: answer', with one of the labels "
        f"{', '.join(KINDS)}."
    )
    return Asked(f"{word} common", question, label, "label")


def compare(rng: random.Random, data: Entries) -> Asked:
    first, second = rng.sample(list(KINDS), 2)
    question = (
        f"In the data, is the label '{first}' more common, less common or of the same frequency as label '{second}'? "
        "Answer in the form 'Answer: X', where X is 'more common', 'less common' or 'same frequency'."
    )
    return Asked("comparison", question, _compared(data.totals[first], data.totals[second]), "phrase")


def _compared(first: int, second: int) -> str:
    return "more common" if first > second else "less common" if first < second else "same frequency"


def of_users(rng: random.Random, data: Entries) -> Asked:
    users, kind = sorted(rng.sample(data.users, 3)), rng.choice(list(KINDS))
    question = (
        f"Consider only the questions of the users {users[0]}, {users[1]} and {users[2]}. Among these, how many "
        f"questions have the label '{kind}'? Answer in the form 'Answer: number'."
    )
    return Asked("number of users", question, sum(data.by_user[user, kind] for user in users), "number")


def over_time(rng: random.Random, data: Entries) -> Asked:
    kind, day = rng.choice(list(KINDS)), DATES[rng.randrange(DAYS // 3, 2 * DAYS // 3)]
    before = sum(number for (date, k), number in data.by_date.items() if k == kind and date < day)
    question = (
        f"In the data, is the label '{kind}' more common, less common or of the same frequency before {day} as "
        "compared to that day and after it? Count questions, not shares. Answer in the form 'Answer: X', where X is "
        "'more common', 'less common' or 'same frequency'."
    )
    return Asked("comparison over time", question, _compared(before, data.totals[kind] - before), "phrase")


def of_days(rng: random.Random, data: Entries) -> Asked:
    start, kind = rng.randrange(DAYS - 200), rng.choice(list(KINDS))
    first, last = DATES[start], DATES[start + rng.randrange(60, 200)]
    found = sum(number for (date, k), number in data.by_date.items() if k == kind and first <= date <= last)
    question = (
        f"Consider only the questions dated from {first} to {last}, both included. Among these, how many questions "
        f"have the label '{kind}'? Answer in the form 'Answer: number'."
    )
    return Asked("number of days", question, found, "number")


def users_with_more(rng: random.Random, data: Entries) -> Asked:
    first, second = rng.sample(list(KINDS), 2)
    found = sorted(user for user in data.users if data.by_user[user, first] > data.by_user[user, second])
    question = (
        f"In the data, which users have asked more '{first}' than '{second}' questions? Answer with their IDs in the "
        "form 'Users: ID, ID, …'."
    )
    return Asked("users", question, found, "users")


COUNT_KINDS: tuple[Callable[[random.Random, Entries], Asked | None], ...] = (
    *(how_many, extreme, compare, of_users, over_time, of_days, users_with_more),
)


# --- pairs of users ------------------------------------------------------------------------------------------------

PAIR_FORM = (
    "In the data, list all pairs of users (each pair once, the lower ID first) where {condition}. Answer with one pair "
    "on a line, in the form (ID, ID)."
)


def pairs(rng: random.Random, characters: int, seed: int) -> Sample:
    """All pairs of users that meet a condition: every user asks three kinds of question only, so that not all do."""
    first, second = rng.sample(list(KINDS), 2)
    day = rng.randrange(DAYS // 4, DAYS // 2)

    def habits(users: list[int]) -> Habits:
        kinds = {user: tuple(rng.sample(list(KINDS), 3)) for user in users}
        return Habits(kinds, {(user, first): day + 1 for user in users if rng.random() < 0.5})

    data = entries(rng, characters - LONGEST_QUESTION, habits)
    kind, condition, one, other = PAIR_KINDS[seed % len(PAIR_KINDS)](data, first, second, DATES[day])
    question = f"{INTRODUCTION}\n\n{PAIR_FORM.format(condition=condition)}"
    users = sorted(data.users)
    found = [
        (a, b) for a, b in itertools.combinations(users, 2) if (a in one and b in other) or (b in one and a in other)
    ]
    return Sample("pairs", kind, question, data.text, found, "pairs")


Condition = tuple[str, str, set[int], set[int]]


def both_either(data: Entries, first: str, second: str, day: str) -> Condition:
    users = {user for user in data.users if data.asked(user, first) or data.asked(user, second)}
    return "both", f"both users have asked at least one '{first}' or '{second}' question", users, users


def both_late(data: Entries, first: str, second: str, day: str) -> Condition:
    users = {user for user in data.users if data.asked(user, first) and data.earliest[user, first] > day}
    condition = (
        f"both users have asked at least one '{first}' question, and all of their '{first}' questions are dated after "
        f"{day}"
    )
    return "both, dated", condition, users, users


def one_each(data: Entries, first: str, second: str, day: str) -> Condition:
    one = {user for user in data.users if data.asked(user, first) and not data.asked(user, second)}
    other = {user for user in data.users if data.asked(user, second) and not data.asked(user, first)}
    condition = (
        f"one user has asked at least one '{first}' question but no '{second}' question, and the other has asked at "
        f"least one '{second}' question but no '{first}' question"
    )
    return "one and other", condition, one, other


PAIR_KINDS = (both_either, both_late, one_each)


def sample(task: str, length: int, seed: int, characters_per_token: float = CHARACTERS_PER_TOKEN) -> Sample:
    """The sample of this name: the same on every machine. `length` in tokens is the question and the context."""
    rng = random.Random(f"{GENERATOR}:{task}:{length}:{seed}:{characters_per_token:g}")
    make = {"needle": needle, "counts": counts, "pairs": pairs}[task]
    return make(rng, int(length * characters_per_token), seed)


# --- scoring -------------------------------------------------------------------------------------------------------


def answer_in(response: str) -> str:
    """What follows the last colon, without emphasis and brackets; of a text without colon all, or its last word.

    As OOLONG reads answers (github.com/abertsch72/oolong, src/eval/eval_helpers.py), and a full stop less.
    """
    text = response.strip()
    if ":" in text:
        text = text.rpartition(":")[2]
    elif len(text) >= 20:
        text = text.split()[-1]
    return re.sub(r"[*\[\]{}`'\"]", "", text).strip().rstrip(".").strip()


def score_contains(expected: str, response: str) -> float:
    """RULER's string match: the value occurs in the response, in whatever case."""
    return float(expected.lower() in response.lower())


def score_number(expected: int, response: str) -> float:
    """0.75 to the power of the distance, as OOLONG (arXiv 2511.02817) gives for numbers."""
    text = answer_in(response).replace(",", "").replace(" ", "")
    return 0.75 ** min(abs(expected - int(text)), 1000) if re.fullmatch(r"-?\d{1,18}", text) else 0.0


def score_label(expected: str, response: str) -> float:
    return float(answer_in(response).lower() == expected)


def score_phrase(expected: str, response: str) -> float:
    """The one of the three phrases that the answer holds; more than one is no answer."""
    text = response.rpartition(":")[2].lower()
    said = [phrase for phrase in ("more common", "less common", "same frequency") if phrase in text]
    return float(said == [expected])


def score_users(expected: list[int], response: str) -> float:
    return f1(set(expected), set(map(int, re.findall(r"\b\d{1,18}\b", response.rpartition("Users:")[2]))))


def score_pairs(expected: list[tuple[int, int]], response: str) -> float:
    found = re.findall(r"[(\[]\s*'?(\d{1,18})'?\s*,\s*'?(\d{1,18})'?\s*[)\]]", response)
    return f1({tuple(sorted(p)) for p in expected}, {tuple(sorted((int(a), int(b)))) for a, b in found})


def f1(expected: set[Any], found: set[Any]) -> float:
    """The harmonic mean of precision and recall; nothing where nothing was to be found is right."""
    if not expected and not found:
        return 1.0
    return 2 * len(expected & found) / (len(expected) + len(found))


SCORES: dict[str, Callable[[Any, str], float]] = {
    "contains": score_contains,
    "number": score_number,
    "label": score_label,
    "phrase": score_phrase,
    "users": score_users,
    "pairs": score_pairs,
}


def score(task: Sample, response: str) -> float:
    return SCORES[task.scoring](task.expected, response)
