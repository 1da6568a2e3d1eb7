"""What is true in the lab's world, by the keys of world/*.toml: no language in here."""

from __future__ import annotations

# country: (capital, continent, currency)
COUNTRIES = {
    "indonesia": ("jakarta", "asia", "rupiah"),
    "vietnam": ("hanoi", "asia", "dong"),
    "thailand": ("bangkok", "asia", "baht"),
    "malaysia": ("kuala_lumpur", "asia", "ringgit"),
    "myanmar": ("naypyidaw", "asia", "kyat"),
    "philippines": ("manila", "asia", "peso"),
    "cambodia": ("phnom_penh", "asia", "riel"),
    "laos": ("vientiane", "asia", "kip"),
    "india": ("new_delhi", "asia", "rupee"),
    "china": ("beijing", "asia", "yuan"),
    "japan": ("tokyo", "asia", "yen"),
    "south_korea": ("seoul", "asia", "won"),
    "nepal": ("kathmandu", "asia", "rupee"),
    "bangladesh": ("dhaka", "asia", "taka"),
    "pakistan": ("islamabad", "asia", "rupee"),
    "saudi_arabia": ("riyadh", "asia", "riyal"),
    "france": ("paris", "europe", "euro"),
    "germany": ("berlin", "europe", "euro"),
    "italy": ("rome", "europe", "euro"),
    "spain": ("madrid", "europe", "euro"),
    "united_kingdom": ("london", "europe", "pound"),
    "poland": ("warsaw", "europe", "zloty"),
    "sweden": ("stockholm", "europe", "krona"),
    "egypt": ("cairo", "africa", "pound"),
    "kenya": ("nairobi", "africa", "shilling"),
    "nigeria": ("abuja", "africa", "naira"),
    "ethiopia": ("addis_ababa", "africa", "birr"),
    "ghana": ("accra", "africa", "cedi"),
    "united_states": ("washington", "north_america", "dollar"),
    "canada": ("ottawa", "north_america", "dollar"),
    "mexico": ("mexico_city", "north_america", "peso"),
    "cuba": ("havana", "north_america", "peso"),
    "brazil": ("brasilia", "south_america", "real"),
    "argentina": ("buenos_aires", "south_america", "peso"),
    "peru": ("lima", "south_america", "sol"),
    "chile": ("santiago", "south_america", "peso"),
    "colombia": ("bogota", "south_america", "peso"),
    "australia": ("canberra", "oceania", "dollar"),
    "new_zealand": ("wellington", "oceania", "dollar"),
    "brunei": ("bandar_seri_begawan", "asia", "dollar"),
    "mongolia": ("ulaanbaatar", "asia", "tugrik"),
    "portugal": ("lisbon", "europe", "euro"),
    "greece": ("athens", "europe", "euro"),
    "austria": ("vienna", "europe", "euro"),
    "netherlands": ("amsterdam", "europe", "euro"),
    "norway": ("oslo", "europe", "krone"),
    "morocco": ("rabat", "africa", "dirham"),
    "tanzania": ("dodoma", "africa", "shilling"),
    "jordan": ("amman", "asia", "dinar"),
    "uruguay": ("montevideo", "south_america", "peso"),
    "jamaica": ("kingston", "north_america", "dollar"),
}

ANIMALS = {
    "mammal": [
        "cat",
        "dog",
        "cow",
        "horse",
        "monkey",
        "buffalo",
        "goat",
        "pig",
        "rabbit",
        "mouse",
        "elephant",
        "tiger",
        "bear",
        "whale",
        "sheep",
        "lion",
        "dolphin",
        "bat",
    ],
    "bird": ["chicken", "duck", "eagle", "owl", "crow", "parrot", "pigeon", "goose"],
    "fish": ["shark", "catfish", "goldfish"],
    "reptile": ["snake", "crocodile", "lizard", "turtle"],
    "insect": ["ant", "bee", "butterfly", "mosquito", "fly", "cockroach", "dragonfly"],
}

OPPOSITES = [
    tuple(pair.split("/"))
    for pair in [
        "big/small",
        "new/old",
        "clean/dirty",
        "expensive/cheap",
        "heavy/light",
        "hot/cold",
        "beautiful/ugly",
        "long/short",
        "strong/weak",
        "good/bad",
        "easy/difficult",
        "fast/slow",
        "wet/dry",
        "thick/thin",
        "wide/narrow",
        "deep/shallow",
        "hard/soft",
        "bright/dark",
        "full/empty",
        "sweet/bitter",
    ]
]

BY_SIZE = ("ant", "mouse", "cat", "goat", "horse", "elephant", "whale")
"""Each is plainly bigger than all before it."""

OF_THINGS = (
    "big",
    "small",
    "new",
    "old",
    "clean",
    "dirty",
    "expensive",
    "cheap",
    "heavy",
    "light",
    "beautiful",
    "ugly",
)
"""The adjectives that a sentence says of a thing."""

FACTS: dict[str, list[tuple[str, ...]]] = {
    "capital": [(country, told[0]) for country, told in COUNTRIES.items()],
    "located": [(country, told[1]) for country, told in COUNTRIES.items()],
    "money": [(country, told[2]) for country, told in COUNTRIES.items()],
    "kind": [(animal, kind) for kind, animals in ANIMALS.items() for animal in animals],
    "opposite": [pair for a, b in OPPOSITES for pair in ((a, b), (b, a))],
    "plus": [(str(a), str(b), str(a + b)) for a in range(11) for b in range(11)],
    "minus": [(str(a + b), str(b), str(a)) for a in range(11) for b in range(11)],
}
"""All facts by relation, in the order of the relation's slots (`words.RELATIONS`)."""
