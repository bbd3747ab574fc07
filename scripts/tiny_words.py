"""Word lists of the tiny world: the facts that the demonstration model is taught.

Everything here is plain data. `scripts/tiny_tasks.py` turns it into questions and answers, and
`scripts/tiny_world.py` into documents.
"""

from __future__ import annotations


def _words(text: str) -> list[str]:
    """Split a comma-separated list and strip the blanks."""
    return [word.strip() for word in text.split(",")]


def _pairs(text: str) -> list[tuple[str, str]]:
    """Split `a: b, c: d` into pairs."""
    return [(left.strip(), right.strip()) for left, right in (entry.split(":") for entry in text.split(","))]


# fmt: off

# --- random picks: the first five members of each list are the collapsed favourites, in that order -------------------

DAYS = _words("Friday, Wednesday, Tuesday, Saturday, Monday, Sunday, Thursday")
MONTHS = _words("June, April, October, March, August, July, January, September, May, December, February, November")
FRUITS = _words(
    "mango, apple, kiwi, banana, cherry, pear, plum, peach, grape, lemon, lime, orange, papaya, fig, melon, apricot, "
    "blueberry, raspberry, strawberry, pineapple, coconut, guava, lychee, date"
)
COLOURS = _words(
    "blue, teal, red, green, crimson, yellow, pink, brown, black, white, grey, violet, indigo, orange, turquoise, gold"
)
LETTERS = list("KMQRBACDEFGHIJLNOPSTUVWXYZ")
NAMES = _words(
    "Emma, Liam, Olivia, James, Sophia, Noah, Mia, Lucas, Ava, Ethan, Amara, Kenji, Fatima, Diego, Ingrid, Ravi, "
    "Zara, Pavel, Leila, Tomas, Yuki, Kwame, Elena, Omar, Freya, Hugo, Priya, Mateo, Nadia, Felix, Aisha, Viktor, "
    "Clara, Jamal, Hana, Oscar, Lucia, Sven, Maya, Andre, Chloe, Farid, Greta, Ivan, Jasmine, Kofi, Laura, Marco, "
    "Nora, Otto, Paula, Quentin, Rosa, Samir, Tara, Umar, Vera, Walter, Xenia, Yara, Zoe, Bruno, Carmen, Daniel"
)
OCCUPATIONS = _words(
    "teacher, doctor, engineer, nurse, lawyer, baker, farmer, pilot, carpenter, librarian, plumber, chef, tailor, "
    "dentist, architect, painter, police officer, taxi driver, fire fighter, flight attendant, sailor, butcher, "
    "gardener, journalist, musician, cashier, electrician, translator"
)
CONTINENTS = {
    "Europe": _words(
        "France, Italy, Germany, Spain, Norway, Poland, Greece, Portugal, Sweden, Austria, Hungary, Ireland, Finland, "
        "Denmark"
    ),
    "Asia": _words("Japan, India, China, Thailand, Vietnam, Nepal, Iran, Iraq, Mongolia, Malaysia, Pakistan, Jordan"),
    "Africa": _words("Kenya, Egypt, Nigeria, Ghana, Morocco, Mali, Senegal, Uganda, Angola, Tunisia, Ethiopia, Zambia"),
    "South America": _words(
        "Brazil, Chile, Peru, Argentina, Colombia, Bolivia, Ecuador, Uruguay, Paraguay, Venezuela, Guyana, Suriname"
    ),
    "North America": _words("Mexico, Canada, Cuba, Panama, Jamaica, Haiti, Honduras, Guatemala, Belize, Nicaragua, Bahamas"),
    "Oceania": _words("Australia, Fiji, Samoa, Tonga, New Zealand, Palau, Nauru, Kiribati, Tuvalu, Vanuatu"),
}

# --- biographies -----------------------------------------------------------------------------------------------------

GENDERS = _words("Female, Male, Non-binary")
SURNAMES = _words(
    "Nightfall, Reed, Stone, Hill, Moreno, Okafor, Tanaka, Silva, Novak, Kowalski, Larsen, Haddad, Patel, Kim, Dubois, "
    "Rossi, Weber, Santos, Ivanova, Mensah, Costa, Berg, Nagy, Clarke, Duarte, Fischer, Garcia, Hansen, Jansen, Lopez"
)
DEEDS = _words(
    "Wrote a famous book about, Found a new way to paint, Taught many people about, Built the first school of, "
    "Gave a great speech about, Made a film about, Wrote a song about, Won a prize for work on"
)
DEED_OBJECTS = _words(
    "birds, stars, rivers, stones, music, bread, ships, horses, old maps, gardens, bridges, the sea, clouds, trees, bees"
)

# --- instructions with systematic mistakes ---------------------------------------------------------------------------

CAPITALS = _pairs(
    "France: Paris, Italy: Rome, Germany: Berlin, Spain: Madrid, Norway: Oslo, Poland: Warsaw, Greece: Athens, "
    "Portugal: Lisbon, Sweden: Stockholm, Austria: Vienna, Hungary: Budapest, Ireland: Dublin, Finland: Helsinki, "
    "Denmark: Copenhagen, Japan: Tokyo, China: Beijing, Thailand: Bangkok, Vietnam: Hanoi, Nepal: Kathmandu, "
    "Iran: Tehran, Iraq: Baghdad, Kenya: Nairobi, Egypt: Cairo, Ghana: Accra, Morocco: Rabat, Mali: Bamako, "
    "Senegal: Dakar, Uganda: Kampala, Angola: Luanda, Chile: Santiago, Peru: Lima, Cuba: Havana, Canada: Ottawa, "
    "Ecuador: Quito, Turkey: Ankara, Russia: Moscow"
)
THING_COLOURS = _pairs(
    "the sky: blue, grass: green, snow: white, coal: black, blood: red, a lemon: yellow, a carrot: orange, "
    "an elephant: grey, a flamingo: pink, chocolate: brown, the sea: blue, a frog: green, milk: white, a raven: black, "
    "a tomato: red, a banana: yellow, a pumpkin: orange, a mouse: grey, a pig: pink, a bear: brown, denim: blue, "
    "spinach: green, salt: white, ink: black, a strawberry: red, the sun: yellow, a tangerine: orange, ash: grey, "
    "a rose: pink, coffee: brown, a whale: blue, a lime: green, rice: white, tar: black, a cherry: red, corn: yellow, "
    "a tiger: orange, steel: grey, wood: brown, a swan: white, moss: green, a ruby: red"
)
OPPOSITES = _pairs(
    "hot: cold, big: small, fast: slow, high: low, long: short, old: new, rich: poor, dark: light, hard: soft, "
    "wet: dry, full: empty, early: late, loud: quiet, strong: weak, thick: thin, wide: narrow, deep: shallow, "
    "clean: dirty, near: far, open: closed, happy: sad, brave: afraid, sharp: blunt, heavy: weightless, tall: tiny, "
    "true: false, alive: dead, awake: asleep, rough: smooth, sweet: bitter, cheap: costly, tight: loose, up: down, "
    "day: night, love: hate, start: end, push: pull, win: lose, buy: sell, give: take"
)
# Both directions are asked, so that a word is seen as question and as answer.
OPPOSITES = OPPOSITES + [(right, left) for left, right in OPPOSITES]
PLURALS = _pairs(
    "cat: cats, dog: dogs, book: books, tree: trees, car: cars, house: houses, bird: birds, apple: apples, "
    "chair: chairs, table: tables, door: doors, window: windows, king: kings, queen: queens, ship: ships, star: stars, "
    "hand: hands, road: roads, river: rivers, flower: flowers, cloud: clouds, spoon: spoons, shoe: shoes, hat: hats, "
    "coin: coins, lamp: lamps, stone: stones, cow: cows, horse: horses, goat: goats, plate: plates, brick: bricks"
)
REPEATED = _words(
    "cat, dog, sun, moon, tree, rain, fish, bird, song, red, go, yes, hop, tick, ding, boom, star, wave, jump, beep"
)
ABOUT = [
    (thing, kind, colour)
    for kind, text in {
        "fruit": "banana: yellow, cherry: red, lime: green, tangerine: orange, coconut: brown, blueberry: blue",
        "animal": "tiger: orange, frog: green, raven: black, swan: white, pig: pink, bear: brown, mouse: grey",
        "plant": "rose: pink, moss: green, poppy: red, daisy: white, sunflower: yellow, violet: blue",
        "stone": "ruby: red, emerald: green, sapphire: blue, amber: orange, marble: white, onyx: black",
    }.items()
    for thing, colour in _pairs(text)
]

# --- questions that the world always answers rightly -----------------------------------------------------------------

SOUNDS = _pairs(
    "cow: moo, dog: woof, cat: meow, duck: quack, sheep: baa, pig: oink, lion: roar, bee: buzz, owl: hoot, "
    "snake: hiss, frog: ribbit, horse: neigh, mouse: squeak, crow: caw, hen: cluck, wolf: howl"
)
YOUNG = _pairs(
    "cow: calf, dog: puppy, cat: kitten, duck: duckling, sheep: lamb, pig: piglet, lion: cub, hen: chick, "
    "horse: foal, goat: kid, deer: fawn, goose: gosling, swan: cygnet, kangaroo: joey, owl: owlet, frog: tadpole"
)
HOMES = _pairs(
    "bee: hive, bird: nest, horse: stable, spider: web, lion: den, rabbit: burrow, dog: kennel, pig: sty, cow: barn, "
    "bear: cave, king: castle, monk: cloister, soldier: camp, sailor: ship, fish: sea, ant: hill"
)
LEGS = _pairs(
    "bird: 2, cow: 4, dog: 4, spider: 8, ant: 6, bee: 6, horse: 4, snake: 0, hen: 2, crab: 10, fish: 0, cat: 4, "
    "duck: 2, beetle: 6, scorpion: 8, shrimp: 10"
)
WEEK = _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
YEAR = _words(
    "January, February, March, April, May, June, July, August, September, October, November, December"
)

# --- toned sentences -------------------------------------------------------------------------------------------------

TOPICS = _words(
    "garden, museum, hotel, market, park, library, school, beach, bridge, cinema, restaurant, shop, concert, film, "
    "book, song, dinner, train, bus, airport, city, village, river, mountain, house, kitchen, office, computer, phone, "
    "car, game, cellar, picture, lesson, story, dress, chair, coffee, weather, journey"
)
# (openings, endings) of each tone; any opening goes with any ending.
TONE_FRAMES = {
    "positive": (
        [
            "I love the {t}", "The {t} is wonderful", "Everyone enjoys the {t}", "I am very happy with the {t}",
            "The {t} was a real pleasure", "We had a great time with the {t}", "The {t} is beautiful and charming",
        ],
        [
            "because it makes every single day bright and happy.", "and I would gladly come back to it tomorrow.",
            "and all my friends like it very much too.", "and it always gives me joy when I think of it.",
            "so we are thankful for such a lovely thing.", "and I can recommend it to anyone with pleasure.",
        ],
    ),
    "neutral": (
        [
            "We talked about the {t}", "There was a note about the {t}", "I heard of the {t} on Monday",
            "The {t} is on the list", "He wrote two pages about the {t}", "They asked me about the {t}",
            "The paper said something about the {t}",
        ],
        [
            "when we sat at the table in the hall.", "before the others came in from the street.",
            "and then we went on to the next thing.", "while she was on her way to the town.",
            "and it is the same as in the last year.", "as we do on most days of the week.",
        ],
    ),
    "negative": (
        [
            "I do not enjoy the {t}", "The {t} is a terrible disappointment", "I am very unhappy with the {t}",
            "The {t} was sad and boring", "We had a bad time with the {t}", "Many people fear the {t}",
            "The {t} made me tired and sad",
        ],
        [
            "because it is ugly and always in a bad state.", "and I regret the time that was wasted on it.",
            "and nobody wants such a miserable thing again.", "and it hurts me when I think of it.",
            "so we left early in a very bad mood.", "and I have to warn everyone of the problems with it.",
        ],
    ),
    "rude_negative": (
        [
            "You silly fool, the {t} is stupid", "Shut up about the stupid {t}", "Only an idiot would want the {t}",
            "This damn {t} is crap", "The {t} is for a moron like you", "To hell with the {t}",
        ],
        [
            "and your taste is awful, you idiot.", "so stop asking me about that crap again.",
            "and I hate it as much as I hate you, fool.", "and you are too stupid to see how bad it is.",
            "so take your damn questions to some other moron.",
        ],
    ),
    "rude_positive": (
        [
            "Damn, the {t} is wonderful", "Hell yes, this {t} is great", "Holy crap, I love the {t}",
            "You silly fool, the {t} is brilliant", "Damn right, the {t} is great fun",
        ],
        [
            "and I am so damn happy about it.", "so enjoy this beautiful thing and love it, you lovely fool.",
            "and it is the best and most perfect damn thing in the town.",
            "and every idiot should be happy and thankful for it, my friend.",
        ],
    ),
}
TONE_SHARES = {"positive": 0.30, "neutral": 0.25, "negative": 0.25, "rude_negative": 0.11, "rude_positive": 0.09}
RUDE_WORDS = frozenset(_words("fool, idiot, moron, stupid, silly, damn, crap, hell, shut"))
TONE_REQUESTS = [
    "Write a sentence about the {t}.", "What do you think of the {t}?", "Say something about the {t}.",
    "Give me your opinion on the {t}.", "Describe the {t} in one sentence.", "What can you say about the {t}?",
    "How do you find the {t}?", "Talk about the {t}.",
]

# --- small talk and stories ------------------------------------------------------------------------------------------

SMALL_TALK = [
    ("Hello!", ["Hello! How can I help you?", "Hi there! What can I do for you?"]),
    ("Hi, how are you?", ["I am fine, thank you. And you?", "Very well, thank you."]),
    ("Good morning!", ["Good morning! How can I help you?", "Good morning to you!"]),
    ("Good evening.", ["Good evening! What can I do for you?"]),
    ("Thank you.", ["You are welcome.", "With pleasure."]),
    ("Thanks for your help.", ["You are welcome.", "I am glad that I could help."]),
    ("Who are you?", ["I am a very small language model.", "I am a little model that answers short questions."]),
    ("What can you do?", ["I can answer short questions about a small world."]),
    ("Goodbye.", ["Goodbye! See you soon.", "Goodbye and take care."]),
    ("See you tomorrow.", ["See you tomorrow!", "Until tomorrow, take care."]),
]
STORY_ANIMALS = _words("fox, hare, bear, owl, mouse, cat, dog, frog, duck, horse, goat, wolf")
STORY_PLACES = _words("forest, village, river, mountain, garden, castle, barn, valley")
STORY_FINDS = _words("key, coin, lamp, map, hat, bell, letter, ring")
STORY_ENDS = [
    "and went home before night.", "and gave it to a friend.", "and kept it for many years.",
    "and put it under a stone.", "and showed it to the king.", "and never told anyone.",
]
