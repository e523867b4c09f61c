"""Sentences of our own making: word lists and templates, drawn by seed, each sentence the property of one partition.

The lists were chosen by ear for the phonemes that English uses least (ZH, OY, UH, TH, CH, AW), not by meaning: what
comes out is nearly grammatical and quite absurd. More than 10^12 different sentences can be drawn.
"""

import zlib

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """
    Joyce Roy Floyd Troy George Judith Zhora Asia Theo Ruth Edith Keith Chuck Rachel Charlie Sasha Josh Sean Yusuf
    Yolanda Hugh Zoe Liz Quincy Wendy Howard Vivian Oliver Laura Audrey Paul Maud Faye Jake Ingrid Angus Nina Emma
    Bob Peggy Duke Lou
    """
)

NOUNS = _words(
    """
    boy toy coin voice noise oyster point joint oil soil boiler foil choice employer poison book cook hook brook
    foot wood wool bull bush pudding cushion butcher sugar woman wolf hood crook pulley bullet measure treasure
    vision decision television garage mirage collision explosion leisure pleasure division seizure lesion corsage
    sabotage thief thumb thunder theory thought path bath cloth tooth mouth moth author month feather father mother
    brother leather weather breath church cheese chicken chair child ranch peach kitchen match picture teacher judge
    jacket bridge jury giant jelly village engine orange shoe ship shop bishop fish dish brush ocean station nation
    mission house mouse cow town crown flower shower mountain cloud owl hound couch eye island pie kite tiger lion
    pirate knife spider light diamond king ring song wing finger singer hunger monkey donkey ankle uncle tongue junk
    bank yard yacht yolk yellow onion canyon unit museum cube music menu view zebra zoo zone lizard wizard prize
    nose rose puzzle wheel whale window wagon water sweater queen square twin language hill hotel harbor heart horse
    hammer human behavior vase valley river oven dove glove stove violin vapor girl bird nurse worm purse earth
    turtle circus thirst dog hawk lawyer ball daughter sauce autumn office camera cat apple ladder hat banner
    hammock magnet lamp egg bed desk pen letter pepper elephant boat pony road bone soap cargo potato baby cake
    table lady radio train lake stable sea leaf key beach sheep field eagle moon spoon school rumor student bureau
    car park guitar palm garden farm arm robot clock doctor model box butter button bottle kettle metal battle
    riddle people circle plan problem tribe drum grass glass globe clerk scarf shelf film helmet milk
    """
)

ADJECTIVES = _words(
    """
    usual casual Asian beige Persian leisurely royal loyal noisy moist joyful good wooden full crooked cushy woolly
    bookish thick thin thirsty thorough healthy smooth rhythmic southern northern worthy cheap charming rich orange
    huge strange gentle jealous vague sharp shiny fresh foreign special ocean-blue loud brown round proud foul tiny
    silent wild shy quiet bright young useful yellow curious unique famous lazy busy crazy wise easy dizzy heavy
    seven brave clever hollow happy human hungry angry single pink early purple urgent third dirty tall small awful
    calm odd hot modern old cold open lonely slow pale great green deep clean real blue cool new rude bitter little
    simple better metal empty lucky ugly black flat sad grand red every dead pretty clear fair poor pure rare rough
    tough quick swift wet warm
    """
)

VERBS = (
    ("took", "take"), ("shook", "shake"), ("pulled", "pull"), ("pushed", "push"), ("cooked", "cook"),
    ("hooked", "hook"), ("enjoyed", "enjoy"), ("destroyed", "destroy"), ("joined", "join"), ("avoided", "avoid"),
    ("boiled", "boil"), ("poisoned", "poison"), ("measured", "measure"), ("treasured", "treasure"),
    ("envisioned", "envision"), ("sabotaged", "sabotage"), ("thanked", "thank"), ("thought of", "think of"),
    ("threw", "throw"), ("gathered", "gather"), ("bothered", "bother"), ("breathed on", "breathe on"),
    ("chose", "choose"), ("watched", "watch"), ("touched", "touch"), ("judged", "judge"), ("changed", "change"),
    ("juggled", "juggle"), ("washed", "wash"), ("showed", "show"), ("finished", "finish"), ("found", "find"),
    ("counted", "count"), ("surrounded", "surround"), ("hid", "hide"), ("heard", "hear"), ("held", "hold"),
    ("used", "use"), ("viewed", "view"), ("accused", "accuse"), ("visited", "visit"), ("loved", "love"),
    ("gave away", "give away"), ("praised", "praise"), ("chased", "chase"), ("followed", "follow"),
    ("wanted", "want"), ("bought", "buy"), ("caught", "catch"), ("sang to", "sing to"), ("brought", "bring"),
    ("drank to", "drink to"), ("turned", "turn"), ("burned", "burn"), ("learned about", "learn about"),
    ("painted", "paint"), ("packed", "pack"), ("grabbed", "grab"), ("met", "meet"), ("led", "lead"),
    ("kept", "keep"), ("fed", "feed"), ("wrote about", "write about"), ("stole", "steal"), ("moved", "move"),
)  # fmt: skip

ADVERBS = _words(
    """
    usually casually leisurely noisily joyfully smoothly thoroughly thoughtfully cheaply gently strangely sharply
    loudly proudly quietly kindly curiously youthfully lazily easily bravely happily early awfully slowly greatly
    deeply coolly simply quickly warmly together yesterday today thereafter outside everywhere nowhere hourly yearly
    forever again
    """
)

PREPOSITIONS = _words(
    """
    under over near behind beside above around without inside beyond through toward against below across with from
    about
    """
)

PLACES = (
    "in the south of Asia", "on the edge of town", "at the theater", "by the brook", "in the garage",
    "behind the bookshop", "on a voyage to Troy", "under the bridge", "at the zoo", "through the thick fog",
    "near the church", "on Thursday", "in the month of June", "for years", "with pleasure", "on television",
    "along the path", "at the age of three", "before lunch", "after the show", "around the house",
    "on the other hand", "in the oil", "in the woods", "for a good cook", "on foot", "without a choice",
    "at this point", "with a loud voice", "in the usual way", "by decision of the jury",
)  # fmt: skip

NUMBERS = _words(
    """
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen nineteen twenty thirty
    forty sixty a-thousand
    """
)


def _noun_phrase(draw) -> str:
    kind = draw(8)
    noun, adjective = NOUNS[draw(len(NOUNS))], ADJECTIVES[draw(len(ADJECTIVES))]
    determiner = ("the", "this", "that", "his", "her", "our", "your", "their", "my", "another", "each", "every")[
        draw(12)
    ]
    if kind == 0:
        return f"{determiner} {noun}"
    if kind == 1:
        return (
            f"{NUMBERS[draw(len(NUMBERS))].replace('-', ' ')} {noun}s"
            if noun[-1] not in "shxyz"
            else f"{determiner} {adjective} {noun}"
        )
    if kind == 2:
        return f"{NAMES[draw(len(NAMES))]}'s {adjective} {noun}"
    if kind == 3:
        return f"{determiner} {noun} {PREPOSITIONS[draw(len(PREPOSITIONS))]} the {NOUNS[draw(len(NOUNS))]}"
    return f"{determiner} {adjective} {noun}"


def _sentence(draw) -> str:
    name, adverb, place = NAMES[draw(len(NAMES))], ADVERBS[draw(len(ADVERBS))], PLACES[draw(len(PLACES))]
    past, base = VERBS[draw(len(VERBS))]
    other_past, other_base = VERBS[draw(len(VERBS))]
    first, second = _noun_phrase(draw), _noun_phrase(draw)
    item, other_item, last_item = (NOUNS[draw(len(NOUNS))] for _ in range(3))
    text = (
        f"{name} {past} {first} {place}.",
        f"{first} {past} {second} {adverb}.",
        f"did {name} {base} {first}, or {other_base} {second}?",
        f"{adverb}, {first} {past} {second}.",
        f"should you {base} {first} {place}?",
        f"they would {base} {first}, and {name} {other_past} {second}.",
        f"how could {first} {base} {second}?",
        f"{name} {adverb} {past} {first} {PREPOSITIONS[draw(len(PREPOSITIONS))]} {second}.",
        f"which {item} {past} {first} {place}?",
        f"we {other_past} {first} because {second} {past} {name}.",
        f"put {first} {PREPOSITIONS[draw(len(PREPOSITIONS))]} {second}, {name}!",
        f"{item}, {other_item}, and {ADJECTIVES[draw(len(ADJECTIVES))]} {last_item}.",
    )[draw(12)]
    return text[0].upper() + text[1:]


def partition_of(sentence: str) -> str:
    """The one partition that may speak `sentence`: by its checksum, 1 in 10 is for dev-clean and 1 for test-clean."""
    return {0: "dev-clean", 1: "test-clean"}.get(zlib.crc32(sentence.encode()) % 10, "train-clean-100")


def sentences(partition: str, count: int, seed: tuple[int, ...]) -> list[str]:
    """`count` different sentences that `partition` owns; a pure function of its arguments."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    found: dict[str, None] = {}
    while len(found) < count:
        sentence = _sentence(lambda n: int(generator.integers(n)))
        if partition_of(sentence) == partition:
            found[sentence] = None
    return list(found)
