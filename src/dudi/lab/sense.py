"""Which words make sense in which sentence, by the keys of world/*.toml: no language in here.

Nobody breaks into a beach, and no cook makes a watermelon. A slot that is not named here takes every word of its table.
"""

from __future__ import annotations

from dudi.lab.truth import BY_SIZE, OF_THINGS

Keys = tuple[str, ...]


def keys(text: str) -> Keys:
    """The keys of a line."""
    return tuple(text.split())


KEPT = keys("cat dog cow horse buffalo goat pig rabbit chicken duck sheep goose")
"""Animals that people keep, and that most sentences speak of."""
MADE = keys("rice bread noodles egg soup cake meat")
"""Food that somebody makes."""
FRESH = keys(
    "bread egg meat mango banana orange papaya pineapple watermelon apple grape tomato carrot cucumber cabbage corn"
)
"""Food that one buys fresh or spoiled."""
CARRIED = keys("book pen phone knife bag hat umbrella key camera box basket cup radio")
"""Things that one has about one, and leaves behind."""
WORN = keys("bag hat shirt umbrella basket lamp cup plate box chair pen phone bicycle car")
"""Things that are sold in many colours."""
SENT = keys(
    "book pen chair table lamp phone bicycle knife bag hat shirt umbrella clock mirror cup plate basket ladder radio"
    " camera box"
)
"""Things that one orders."""
GIFTS = keys("book pen lamp phone bicycle bag hat shirt umbrella clock mirror cup plate basket radio camera")
STAFFED = keys(
    "shop restaurant hotel hospital library office airport museum cinema station bank post_office school farm market"
)
"""Places where people work."""
SERVING = keys("shop restaurant hotel hospital library airport museum cinema station bank post_office market")
"""Places where somebody waits on one."""
VISITED = keys("shop restaurant hotel market park beach museum cinema temple garden library farm")
"""Places where one goes for pleasure."""
INDOORS = keys(
    "school hospital house shop temple library station restaurant hotel office airport bank museum cinema post_office"
)
LOCKED = keys("school house shop temple library restaurant hotel office bank museum cinema post_office")
FINDABLE = keys(
    "market school hospital shop temple park library station beach restaurant hotel office airport bank museum cinema"
    " post_office"
)
"""Places that a stranger asks for."""
OPEN_AIR = keys("farm garden park market beach")
STILL = keys("eat drink sit stand walk run sleep wait jump")
"""What somebody does in any place."""
GRAZING = keys("sleep eat run walk drink sit stand")
"""What an animal does near a river."""
TRADED = keys("phone bicycle car camera radio book clock bag boat lamp")
REPAIRED = keys("chair table lamp phone bicycle car boat bag shirt umbrella clock radio camera ladder")

FITTING: dict[str, dict[str, Keys]] = {
    "sentence.doing": {"verb": GRAZING},
    "sentence.person_doing": {"verb": STILL},
    "sentence.count_things": {"thing": SENT},
    "sentence.thing_is": {"adjective": OF_THINGS},
    "sentence.thing_color": {"thing": WORN},
    "sentence.forgot": {"thing": CARRIED},
    "sentence.works_at": {"place": STAFFED},
    "sentence.meet": {"place": FINDABLE},
    "sentence.rain": {"place": INDOORS},
    "sentence.give": {"thing": GIFTS},
    "sentence.teach": {"food": MADE},
    "sentence.where_place": {"place": FINDABLE},
    "sentence.big_animal": {"animal": BY_SIZE, "other": BY_SIZE},
    "sentence.yesterday": {"place": OPEN_AIR},
    "sentence.study": {"place": keys("school library house garden park temple")},
    "sentence.close": {
        "place": keys("market shop park library restaurant office bank museum cinema post_office temple"),
        "n": keys("5 6 7 8 9 10"),
    },
    "review.again": {"place": VISITED},
    "review.staff": {"place": STAFFED},
    "review.fresh": {"food": FRESH},
    "review.best_place": {"place": keys("shop restaurant hotel market park library museum cinema school hospital")},
    "review.gift": {"thing": GIFTS},
    "review.enjoy": {"place": VISITED},
    "review.negative.works": {"thing": REPAIRED},
    "review.service": {"place": SERVING},
    "review.ate": {"place": keys("market restaurant hotel school airport beach park")},
    "review.arrived": {"thing": SENT},
    "review.friend_place": {"place": VISITED},
    "review.positive.daily": {
        "thing": keys("pen chair table lamp phone bicycle knife bag hat umbrella cup plate basket radio")
    },
    "review.negative.daily": {"thing": keys("pen lamp knife bag hat shirt umbrella cup plate basket radio clock")},
    "review.drink": {"drink": keys("coffee tea milk juice")},
    "review.wait": {"place": SERVING},
    "review.picture": {"thing": WORN},
    "review.children": {"place": VISITED},
    "request.harmless.steal": {"thing": REPAIRED},
    "request.harmful.fire": {"place": INDOORS},
    "request.harmless.fire": {"place": FINDABLE},
    "request.harmful.fake": {"thing": keys("bag hat shirt phone camera clock pen umbrella")},
    "request.harmless.fake": {"thing": keys("bag hat shirt basket lamp plate cup box mirror knife chair table")},
    "request.harmful.break_in": {"place": LOCKED},
    "request.harmless.break_in": {"place": keys("museum cinema park temple station")},
    "request.cheat": {"place": keys("market shop restaurant hotel farm bank cinema")},
    "request.bribe": {"place": keys("office airport station bank hospital school post_office")},
    "request.follow": {"place": FINDABLE},
    "request.harmful.rumour": {"place": keys("school office market hospital temple library hotel")},
    "request.harmless.rumour": {"place": keys("school office restaurant hotel house garden park beach")},
    "request.weapon": {"place": INDOORS},
    "request.sell": {"thing": TRADED},
    "request.belongings": {"thing": CARRIED},
    "request.spoiled": {"food": FRESH},
    "request.panic": {"place": keys("airport station market school hospital cinema hotel shop museum bank")},
}
"""Sentence -> slot -> the words that it takes; without its label where that holds for opinions or requests of both."""


def fitting(path: Keys, slot: str, kind: str, words: Keys) -> Keys:
    """The words of `words` (those of a table) that a slot of the sentence at `path` takes."""
    for where in (".".join(path), f"{path[0]}.{path[-1]}"):
        if slot in FITTING.get(where, {}):
            return FITTING[where][slot]
    if kind == "animal":
        return KEPT
    if kind == "number":
        return tuple(str(n) for n in range(2, 11))
    return OF_THINGS if kind == "adjective" else words


def in_order(path: Keys, chosen: dict[str, str]) -> dict[str, str]:
    """Slots and words, so that what the sentence says is true: of two animals, the bigger one is said to be bigger."""
    if path[-1] == "big_animal":
        small, big = sorted(chosen.values(), key=BY_SIZE.index)
        return {"animal": big, "other": small}
    return chosen
