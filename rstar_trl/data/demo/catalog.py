"""The demo's ten databases.

Column names are short, and are shared between databases where they mean the same: what a policy learns about `city`
in one it can use in the next.
"""

from __future__ import annotations

import dataclasses

from rstar_trl.data.demo import content
from rstar_trl.data.demo.domains import Column, Domain, Link, Table


def _number(name: str, nouns: str, low: int, high: int, step: int = 1, nulls: float = 0.0) -> Column:
    return Column(name, "number", tuple(nouns.split("|")), content.whole(low, high, step), nulls)


def _sum(name: str, nouns: str, low: int, high: int, step: int = 1, nulls: float = 0.0) -> Column:
    """A number whose total over rows means something."""
    return dataclasses.replace(_number(name, nouns, low, high, step, nulls), additive=True)


def _category(name: str, nouns: str, values: str, nulls: float = 0.0) -> Column:
    return Column(name, "category", tuple(nouns.split("|")), content.pick(tuple(values.split("|"))), nulls)


PERSON = Column("name", "name", ("name", "full name"), content.person)
TITLE = Column("title", "name", ("title", "heading"), content.title)
CITY = Column("city", "category", ("city", "town"), content.pick(content.CITIES))
COUNTRY = Column("country", "category", ("country", "nation"), content.pick(content.COUNTRIES))
HOME = Column("city", "category", ("city", "town"), content.pick(content.CITIES), nulls=0.1)
AGE = _number("age", "age|age in years", 18, 90)
YEAR = _number("year", "year|calendar year", 1960, 2024)
PRICE = _sum("price", "price|cost", 5, 400)
SALARY = _sum("salary", "salary|pay", 2000, 9900, 50)
BUDGET = _sum("budget", "budget|funding", 100, 9900, 20)
RATING = Column("rating", "number", ("rating", "score"), content.tenths(1, 10), 0.1, type="real")
DAY = Column("day", "date", ("day", "date"), content.day(2015, 2024))


def _place(*kinds: str) -> Column:
    return Column("name", "name", ("name", "label"), content.named(kinds))


def _people(name: str, rows: int, nouns: tuple[tuple[str, str], ...], *columns: Column) -> Table:
    return Table(name, rows, nouns, (PERSON, *columns))


GENRES = "rock|pop|jazz|folk|blues|soul|hip hop"
STORIES = "drama|comedy|crime|fantasy|horror|romance|sci fi"

DOMAINS: tuple[Domain, ...] = (
    Domain(
        "music",
        (
            _people(
                "singer",
                60,
                (("singer", "singers"), ("artist", "artists")),
                COUNTRY,
                _category("genre", "genre|style", GENRES, 0.1),
                AGE,
                _sum("fans", "fan count|number of fans", 100, 9900, 10),
            ),
            Table(
                "venue",
                40,
                (("venue", "venues"), ("hall", "halls")),
                (_place("Hall", "Arena", "Club"), CITY, _sum("seats", "seats|capacity", 100, 900, 5), RATING),
            ),
            Table(
                "album",
                150,
                (("album", "albums"), ("record", "records")),
                (TITLE, YEAR, PRICE, _sum("sales", "sales|sold copies", 10, 990, nulls=0.1)),
                (Link("singer_id", "singer", ("by", "of")),),
            ),
            Table(
                "gig",
                180,
                (("gig", "gigs"), ("concert", "concerts")),
                (DAY, _sum("tickets", "tickets|tickets sold", 20, 900)),
                (Link("singer_id", "singer", ("by", "of")), Link("venue_id", "venue", ("at", "in"))),
            ),
        ),
    ),
    Domain(
        "school",
        (
            _people("teacher", 40, (("teacher", "teachers"), ("instructor", "instructors")), CITY, AGE, SALARY),
            _people(
                "student",
                90,
                (("student", "students"), ("pupil", "pupils")),
                HOME,
                AGE,
                _category("house", "house|group", "red|green|blue|yellow|white"),
            ),
            Table(
                "course",
                60,
                (("course", "courses"), ("class", "classes")),
                (
                    TITLE,
                    _category("level", "level|stage", "basic|middle|advanced|expert"),
                    _sum("hours", "hours|hour count", 10, 150),
                    PRICE,
                ),
                (Link("teacher_id", "teacher", ("taught by", "of")),),
            ),
            Table(
                "exam",
                200,
                (("exam", "exams"), ("test", "tests")),
                (
                    DAY,
                    _sum("points", "points|mark", 0, 100, nulls=0.1),
                    _category("room", "room|place", "lab|gym|library|main hall|annex"),
                ),
                (Link("student_id", "student", ("of", "taken by")), Link("course_id", "course", ("in", "for"))),
            ),
        ),
    ),
    Domain(
        "shop",
        (
            _people(
                "customer",
                80,
                (("customer", "customers"), ("client", "clients")),
                CITY,
                AGE,
                _category("level", "level|tier", "bronze|silver|gold|platinum"),
            ),
            Table(
                "product",
                70,
                (("product", "products"), ("item", "items")),
                (
                    _place("Lamp", "Chair", "Desk", "Clock", "Vase", "Rug"),
                    _category("kind", "kind|type", "office|kitchen|garden|bath|kids' room"),
                    _category("color", "color|colour", "black|white|red|green|blue|dark grey", 0.1),
                    PRICE,
                    _sum("stock", "stock|units in stock", 0, 300),
                ),
            ),
            Table(
                "sale",
                200,
                (("sale", "sales"), ("order", "orders")),
                (
                    DAY,
                    _sum("amount", "amount|value", 5, 990),
                    _category("status", "status|state", "paid|open|sent|returned|on hold"),
                ),
                (Link("customer_id", "customer", ("by", "of")), Link("product_id", "product", ("for", "containing"))),
            ),
        ),
    ),
    Domain(
        "library",
        (
            _people(
                "author",
                50,
                (("author", "authors"), ("writer", "writers")),
                COUNTRY,
                AGE,
                _sum("prizes", "prizes|prize count", 0, 40),
            ),
            _people(
                "member",
                80,
                (("member", "members"), ("reader", "readers")),
                HOME,
                AGE,
                _category("level", "level|tier", "child|adult|senior|staff"),
            ),
            Table(
                "book",
                130,
                (("book", "books"), ("volume", "volumes")),
                (
                    TITLE,
                    _category("genre", "genre|style", STORIES),
                    YEAR,
                    _sum("pages", "pages|page count", 60, 900, nulls=0.1),
                ),
                (Link("author_id", "author", ("by", "of")),),
            ),
            Table(
                "loan",
                200,
                (("loan", "loans"), ("checkout", "checkouts")),
                (
                    DAY,
                    _sum("term", "term|duration", 1, 60),
                    _category("status", "status|state", "open|returned|late|lost"),
                ),
                (Link("book_id", "book", ("of", "for")), Link("member_id", "member", ("by", "of"))),
            ),
        ),
    ),
    Domain(
        "flights",
        (
            Table(
                "airline",
                40,
                (("airline", "airlines"), ("carrier", "carriers")),
                (_place("Air", "Wings", "Jet"), COUNTRY, RATING, _sum("fleet", "fleet|fleet size", 3, 400)),
            ),
            Table(
                "airport",
                45,
                (("airport", "airports"), ("airfield", "airfields")),
                (
                    _place("Field", "Airport"),
                    CITY,
                    _sum("gates", "gates|gate count", 2, 90),
                    _category("size", "size|class", "tiny|small|medium|large|huge"),
                ),
            ),
            Table(
                "flight",
                200,
                (("flight", "flights"), ("trip", "trips")),
                (
                    DAY,
                    PRICE,
                    _sum("delay", "delay|delay in minutes", 0, 240, nulls=0.15),
                    _sum("miles", "miles|distance", 100, 5000, 10),
                ),
                (Link("airline_id", "airline", ("of", "run by")), Link("airport_id", "airport", ("to", "landing at"))),
            ),
        ),
    ),
    Domain(
        "clinic",
        (
            _people(
                "doctor",
                40,
                (("doctor", "doctors"), ("physician", "physicians")),
                CITY,
                SALARY,
                _category("field", "field|specialty", "heart|skin|eye|bone|brain|ear and nose"),
            ),
            _people(
                "patient",
                90,
                (("patient", "patients"), ("sick person", "sick people")),
                CITY,
                AGE,
                _number("weight", "weight|weight in kilos", 40, 140, nulls=0.1),
                _category("blood", "blood|blood type", "A|B|AB|O"),
            ),
            Table(
                "visit",
                200,
                (("visit", "visits"), ("appointment", "appointments")),
                (
                    DAY,
                    _sum("cost", "cost|fee", 20, 900),
                    _category("status", "status|state", "done|booked|missed|moved"),
                ),
                (Link("doctor_id", "doctor", ("with", "to")), Link("patient_id", "patient", ("of", "by"))),
            ),
        ),
    ),
    Domain(
        "league",
        (
            Table(
                "team",
                40,
                (("team", "teams"), ("club", "clubs")),
                (
                    _place("United", "Stars", "Lions"),
                    CITY,
                    BUDGET,
                    _category("color", "color|colour", "black|white|red|green|blue|dark grey"),
                ),
            ),
            Table(
                "player",
                160,
                (("player", "players"), ("athlete", "athletes")),
                (
                    PERSON,
                    AGE,
                    _category("role", "role|position", "keeper|defender|midfield|striker|reserve"),
                    _sum("goals", "goals|goal count", 0, 120, nulls=0.1),
                ),
                (Link("team_id", "team", ("of", "playing for")),),
            ),
            Table(
                "award",
                120,
                (("award", "awards"), ("trophy", "trophies")),
                (
                    TITLE,
                    YEAR,
                    _sum("prize", "prize|prize money", 100, 9900, 20),
                    _category("kind", "kind|type", "local|national|world|youth|fair play"),
                ),
                (Link("player_id", "player", ("won by", "of")),),
            ),
        ),
    ),
    Domain(
        "company",
        (
            Table(
                "dept",
                40,
                (("department", "departments"), ("division", "divisions")),
                (_place("Sales", "Research", "Support"), CITY, BUDGET, _number("floor", "floor|storey", 1, 40)),
            ),
            Table(
                "project",
                50,
                (("project", "projects"), ("program", "programs")),
                (
                    TITLE,
                    _category("kind", "kind|type", "web|mobile|data|security|in house"),
                    _sum("cost", "cost|expense", 20, 990),
                    YEAR,
                ),
            ),
            Table(
                "worker",
                130,
                (("worker", "workers"), ("employee", "employees")),
                (
                    PERSON,
                    AGE,
                    SALARY,
                    _category("job", "job|profession", "clerk|analyst|engineer|manager|team lead"),
                    HOME,
                ),
                (Link("dept_id", "dept", ("in", "working in")),),
            ),
            Table(
                "task",
                200,
                (("task", "tasks"), ("duty", "duties")),
                (
                    DAY,
                    _sum("hours", "hours|hour count", 1, 200),
                    _category("status", "status|state", "open|done|late|on hold", 0.1),
                ),
                (Link("worker_id", "worker", ("of", "done by")), Link("project_id", "project", ("in", "for"))),
            ),
        ),
    ),
    Domain(
        "cinema",
        (
            _people(
                "director",
                40,
                (("director", "directors"), ("film maker", "film makers")),
                COUNTRY,
                AGE,
                _sum("prizes", "prizes|prize count", 0, 40),
            ),
            _people(
                "actor",
                80,
                (("actor", "actors"), ("performer", "performers")),
                COUNTRY,
                AGE,
                _number("height", "height|height in cm", 150, 210, nulls=0.1),
            ),
            Table(
                "film",
                120,
                (("film", "films"), ("movie", "movies")),
                (
                    TITLE,
                    _category("genre", "genre|style", STORIES, 0.1),
                    YEAR,
                    _sum("minutes", "minutes|running time", 60, 240),
                    RATING,
                ),
                (Link("director_id", "director", ("by", "directed by")),),
            ),
            Table(
                "part",
                200,
                (("part", "parts"), ("appearance", "appearances")),
                (
                    _category("kind", "kind|type", "lead|support|voice|guest|stunt double"),
                    _sum("pay", "pay|fee", 10, 990),
                    _sum("lines", "lines|line count", 1, 300),
                ),
                (Link("film_id", "film", ("in", "of")), Link("actor_id", "actor", ("by", "played by"))),
            ),
        ),
    ),
    Domain(
        "travel",
        (
            Table(
                "hotel",
                45,
                (("hotel", "hotels"), ("inn", "inns")),
                (
                    _place("Hotel", "Inn", "Lodge"),
                    CITY,
                    RATING,
                    _category("stars", "stars|category", "budget|standard|comfort|luxury"),
                ),
            ),
            _people("guest", 80, (("guest", "guests"), ("visitor", "visitors")), COUNTRY, AGE),
            Table(
                "room",
                140,
                (("room", "rooms"), ("unit", "units")),
                (
                    _category("kind", "kind|type", "single|double|suite|family|studio flat"),
                    _number("floor", "floor|storey", 1, 40),
                    PRICE,
                    _category("side", "side|view", "sea|garden|street|pool", 0.1),
                ),
                (Link("hotel_id", "hotel", ("in", "of")),),
            ),
            Table(
                "stay",
                200,
                (("stay", "stays"), ("booking", "bookings")),
                (
                    DAY,
                    _sum("nights", "nights|number of nights", 1, 30),
                    _sum("amount", "amount|value", 50, 990, nulls=0.1),
                ),
                (Link("room_id", "room", ("of", "in")), Link("guest_id", "guest", ("by", "of"))),
            ),
        ),
    ),
)
