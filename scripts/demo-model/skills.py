"""One function per skill: each draws one item, a list of (user, model) turns, of the training or of the held-out split.

An item is held out by a hash of its key (what has to be solved, not how it is asked), so the splits are disjoint whatever is
drawn. Facts cannot be guessed when unseen: for them the key is the phrasing.
"""

import hashlib
import string

from tables import *

HELD_OUT, TRAIN = "held-out", "train"


def split_of(skill, key, share=0.1):
    """A tenth of all keys is held out, or another share."""
    return HELD_OUT if hashlib.sha256(f"{skill}:{key}".encode()).digest()[0] < 256 * share else TRAIN


# Words that other skills use are met in training anyway: all of them are spelled there, and only others are held out.
TAUGHT_WORDS = set(sum(CATEGORIES.values(), []) + OBJECTS + PLACES + FOODS) | set(YOUNG) | set(PAST) | set(PLURALS)


def split_of_word(word):
    return TRAIN if word in TAUGHT_WORDS else split_of("word", word, 0.2)


def draw(rng, split, skill, propose):
    """The first proposal (key, item) that belongs to `split`."""
    while True:
        key, item = propose(rng)
        if split_of(skill, key) == split:
            return item


# ---- how things are asked ------------------------------------------------------------------------------------------------

OPENINGS = [""] * 20 + ["Please tell me: ", "Hi! ", "Quick question: ", "I have a question. ", "Question: ", "Can you help me? ",
            "Next question: ", "I forgot. ", "OK. ", "And now: "]


def ask(rng, question):
    """The question with an opening, sometimes typed carelessly."""
    text = rng.choice(OPENINGS) + question
    careless = rng.random()
    if careless < 0.06:
        text = text.rstrip("?.")
    elif careless < 0.10:
        text = text[0].lower() + text[1:]
    return text


def phrased(rng, split, skill, cores, fact):
    """A fact asked in a phrasing of this split: which opening goes with which wording is what is held out."""
    while True:
        core, opening = rng.randrange(len(cores)), rng.choice(OPENINGS)
        if opening and split_of(skill, f"{core}:{opening}") != split:
            continue
        if not opening and split == HELD_OUT:
            continue  # the plain wordings are all taught
        text = opening + cores[core].format(*fact)
        if split == TRAIN:
            careless = rng.random()
            if careless < 0.06:
                text = text.rstrip("?.")
            elif careless < 0.10:
                text = text.lower()
        return text


# ---- facts ---------------------------------------------------------------------------------------------------------------

CAPITAL = ["What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}.", "Tell me the capital of {}.",
           "What's the capital city of {}?", "The capital of {} is which city?", "Do you know the capital of {}?"]
COUNTRY = ["Which country has the capital {}?", "{} is the capital of which country?", "What country is {} the capital of?"]
CONTINENT = ["On which continent is {}?", "Which continent is {} in?", "What continent does {} belong to?", "Where in the world is {}?"]
OPPOSITE = ["What is the opposite of {}?", "Name the opposite of {}.", "Give me the opposite of {}.", "Which word means the opposite of {}?"]
BABY = ["What is a young {} called?", "What do you call a baby {}?", "What is the name of a young {}?", "A baby {} is called what?"]
SOUND = ["What sound does a {} make?", "What does a {} say?", "Which sound does a {} make?", "What noise does a {} make?"]
COLOUR = ["What colour is {}?", "Which colour is {}?", "Tell me the colour of {}.", "What is the colour of {}?", "What color is {}?"]
NUMBER = ["How many {}?", "Tell me how many {}.", "Do you know how many {}?"]
PAST_TENSE = ["What is the past tense of {}?", "Give me the past tense of {}.", "Name the past tense of {}.", "What's the past tense of the verb {}?"]
PLURAL = ["What is the plural of {}?", "Give me the plural of {}.", "Name the plural of {}.", "What's the plural form of {}?"]
AFTER = ["Which {} comes after {}?", "What {} comes after {}?", "Name the {} after {}.", "What is the {} that follows {}?"]
BEFORE = ["Which {} comes before {}?", "What {} comes before {}?", "Name the {} before {}.", "What is the {} just before {}?"]
TIMES = ["What is {} times {}?", "What is {} x {}?", "{} times {}", "{} x {}", "How much is {} times {}?", "Multiply {} by {}.", "Calculate {} * {}.", "What is {} * {}?"]
DIVIDED = ["What is {} divided by {}?", "What is {} / {}?", "{} divided by {}", "How much is {} divided by {}?", "Divide {} by {}.", "Calculate {} / {}."]


def upper(text):
    return text[0].upper() + text[1:]


def capitals(rng, split):
    country, (capital, continent) = rng.choice(list(COUNTRIES.items()))
    kind = rng.random()
    if kind < 0.6:
        question, answer = phrased(rng, split, "capital", CAPITAL, (country,)), f"The capital of {country} is {capital}."
    elif kind < 0.8:
        question, answer = phrased(rng, split, "country", COUNTRY, (capital,)), f"{capital} is the capital of {country}."
    else:
        question, answer = phrased(rng, split, "continent", CONTINENT, (country,)), f"{upper(country)} is in {continent}."
    return [(question, answer)]


def neighbour(rng, split):
    """Days and months before and after."""
    kind, names = rng.choice([("day", DAYS), ("month", MONTHS)])
    at = rng.randrange(len(names))
    after = names[(at + 1) % len(names)]
    if rng.random() < 0.5:
        return phrased(rng, split, "after", AFTER, (kind, names[at])), f"{after} comes after {names[at]}."
    return phrased(rng, split, "before", BEFORE, (kind, after)), f"{names[at]} comes before {after}."


def small_facts(rng, split):
    def pick(table):
        return rng.choice(list(table.items()))

    def opposite():
        one, other = rng.choice(OPPOSITES)
        if rng.random() < 0.5:
            one, other = other, one
        return phrased(rng, split, "opposite", OPPOSITE, (one,)), f"The opposite of {one} is {other}."

    def young():
        animal, baby = pick(YOUNG)
        return phrased(rng, split, "young", BABY, (animal,)), f"A young {animal} is called a {baby}."

    def sound():
        animal, noise = pick(SOUNDS)
        return phrased(rng, split, "sound", SOUND, (animal,)), f"A {animal} says {noise}."

    def colour():
        thing, name = pick(COLOURS_OF)
        return phrased(rng, split, "colour", COLOUR, (thing,)), f"{upper(thing)} is {name}."

    def number():
        what, count = pick(NUMBERS)
        return phrased(rng, split, "number", NUMBER, (what,)), f"{count}."

    def past():
        verb, form = pick(PAST)
        return phrased(rng, split, "past", PAST_TENSE, (verb,)), f"The past tense of {verb} is {form}."

    def plural():
        noun, form = pick(PLURALS)
        return phrased(rng, split, "plural", PLURAL, (noun,)), f"The plural of {noun} is {form}."

    return [rng.choice([opposite, young, sound, colour, number, past, plural, lambda: neighbour(rng, split)])()]


def times_tables(rng, split):
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    if rng.random() < 0.6:
        return [(phrased(rng, split, "times", TIMES, (a, b)), f"{a} x {b} = {a * b}.")]
    return [(phrased(rng, split, "divided", DIVIDED, (a * b, b)), f"{a * b} / {b} = {a}.")]


# ---- numbers -------------------------------------------------------------------------------------------------------------

SUM = ["What is {} + {}?", "What is {} plus {}?", "{} + {}", "{} + {} =", "Add {} and {}.", "How much is {} + {}?", "Calculate {} + {}.",
       "What is the sum of {} and {}?", "How much is {} plus {}?"]
DIFFERENCE = ["What is {} - {}?", "What is {} minus {}?", "{} - {}", "{} - {} =", "How much is {} - {}?", "Calculate {} - {}.",
              "How much is {} minus {}?"]
SUM_STORY = ["{0} has {2} {1} and gets {3} more. How many {1} does {0} have now?",
             "There are {2} {1} on the table and {3} in the box. How many {1} are there in all?"]
DIFFERENCE_STORY = ["{0} has {2} {1} and gives away {3}. How many {1} does {0} have left?",
                    "There are {2} {1} in the box. {0} takes {3}. How many {1} are left?"]


def added(a, b):
    """The digits from the right, as on paper: a carry is one more number to add."""
    (tens_a, ones_a), (tens_b, ones_b) = divmod(a, 10), divmod(b, 10)
    steps = [f"{ones_a} + {ones_b} = {ones_a + ones_b}"]
    tens = [ten for ten in (tens_a, tens_b) if ten] + ([1] if ones_a + ones_b > 9 else [])
    if len(tens) > 1:
        steps.append(f"{' + '.join(map(str, tens))} = {sum(tens)}")
    return working(steps, f"{a} + {b} = {a + b}", a > 9 or b > 9)


def subtracted(a, b):
    """The digits from the right, as on paper: what is borrowed is one more number to take away."""
    (tens_a, ones_a), (tens_b, ones_b) = divmod(a, 10), divmod(b, 10)
    borrowed = ones_a < ones_b
    ones = ones_a + 10 * borrowed
    steps = [f"{ones} - {ones_b} = {ones - ones_b}"]
    tens = [ten for ten in (tens_b, int(borrowed)) if ten]
    if tens:
        steps.append(f"{' - '.join(map(str, [tens_a] + tens))} = {tens_a - sum(tens)}")
    return working(steps, f"{a} - {b} = {a - b}", a > 9)


def working(steps, result, long):
    return f"{', '.join(steps)}, so {result}." if long else f"{result}."


def arithmetic(rng, split):
    def propose(rng):
        a, b = (rng.randint(0, 99 if rng.random() < 0.8 else 9) for _ in range(2))
        story = rng.random() < 0.15
        who, what = rng.choice(NAMES), rng.choice(["apples", "coins", "books", "eggs", "pears", "keys"])
        if rng.random() < 0.5:
            question = rng.choice(SUM_STORY).format(who, what, a, b) if story else rng.choice(SUM).format(a, b)
            return f"{min(a, b)}+{max(a, b)}", [(ask(rng, question), added(a, b))]
        a, b = max(a, b), min(a, b)
        question = rng.choice(DIFFERENCE_STORY).format(who, what, a, b) if story else rng.choice(DIFFERENCE).format(a, b)
        return f"{a}-{b}", [(ask(rng, question), subtracted(a, b))]

    return draw(rng, split, "arithmetic", propose)


def comparing(rng, split):
    def propose(rng):
        top = rng.choice([99, 99, 999])
        a = rng.randint(0, top)
        b = rng.randint(0, top) if rng.random() < 0.6 else max(0, min(top, a + rng.randint(-12, 12)))
        if a == b:
            b = a + 1
        larger, smaller = max(a, b), min(a, b)
        question, answer = rng.choice([
            (f"Which is larger, {a} or {b}?", f"{larger} is larger than {smaller}."),
            (f"Which number is larger: {a} or {b}?", f"{larger} is larger than {smaller}."),
            (f"Which is bigger, {a} or {b}?", f"{larger} is larger than {smaller}."),
            (f"Which is smaller, {a} or {b}?", f"{smaller} is smaller than {larger}."),
            (f"Which number is smaller: {a} or {b}?", f"{smaller} is smaller than {larger}."),
            (f"Is {a} larger than {b}?", "Yes." if a > b else "No."),
            (f"Is {a} smaller than {b}?", "Yes." if a < b else "No."),
        ])
        return f"{smaller}:{larger}", [(ask(rng, question), answer)]

    return draw(rng, split, "comparing", propose)


def sorting(rng, split):
    def propose(rng):
        numbers = rng.sample(range(100), rng.choice([3, 3, 4, 4, 5]))
        listed = ", ".join(map(str, numbers))
        down = rng.random() < 0.35
        question = rng.choice(
            ["Sort these numbers from largest to smallest: {}.", "Sort from largest to smallest: {}", "Put these numbers in order, largest first: {}."]
            if down else
            ["Sort these numbers from smallest to largest: {}.", "Sort these numbers: {}.", "Sort: {}", "Put these numbers in order: {}.",
             "Put these numbers in order, smallest first: {}."]).format(listed)
        key = ",".join(map(str, sorted(numbers)))
        return key, [(ask(rng, question), ", ".join(map(str, sorted(numbers, reverse=down))))]

    return draw(rng, split, "sorting", propose)


def counted(words):
    return ", ".join(f"{at} {word}" for at, word in enumerate(words, 1))


def counting(rng, split):
    def numbers(rng):
        low = rng.randint(0, 92)
        high = low + rng.randint(3, 8)
        if rng.random() < 0.7:
            question = rng.choice(["Count from {} to {}.", "Please count from {} to {}.", "Can you count from {} to {}?"]).format(low, high)
            return f"{low}:{high}", [(ask(rng, question), ", ".join(map(str, range(low, high + 1))))]
        question = rng.choice(["Count down from {} to {}.", "Count backwards from {} to {}."]).format(high, low)
        return f"{high}:{low}", [(ask(rng, question), ", ".join(map(str, range(high, low - 1, -1))))]

    def items(rng):
        words = rng.sample(rng.choice(list(CATEGORIES.values())), rng.randint(2, 6))
        question = rng.choice(["How many items are in this list: {}?", "Count the items: {}", "How many words are here: {}?",
                               "Count these words: {}."]).format(", ".join(words))
        return ",".join(words), [(ask(rng, question), f"{counted(words)}. There are {len(words)}.")]

    return draw(rng, split, "counting", rng.choice([numbers, items]))


# ---- words ---------------------------------------------------------------------------------------------------------------

SPELLED = [word for word in sorted(TAUGHT_WORDS | set(WORDS)) if split_of_word(word) == TRAIN]


def invented_word(rng):
    """A word that no list holds, so that letters are learnt and not words."""
    kind = rng.random()
    if kind < 0.5:
        # The beginning of a taught word with the end of another: pieces that words are made of.
        start, end = (rng.choice(SPELLED) for _ in range(2))
        return (start[: rng.randint(1, len(start))] + end[rng.randint(0, len(end) - 1) :])[:10]
    if kind < 0.6:
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 7)))
    word = "".join(rng.choice("b c d f g h j k l m n p qu r s t v w x y z st tr ch sh th bl br cl gr pl".split()) +
                   rng.choice("a e i o u a e i o u ai ea oo ou ee".split()) + rng.choice(["", "", "n", "r", "l", "t", "s", "ck", "nd", "m", "x"])
                   for _ in range(rng.randint(1, 3)))
    return word[:10]


def spelling(rng, split):
    words = [word for word in sorted(TAUGHT_WORDS | set(WORDS)) if split_of_word(word) == split]
    word = rng.choice(words) if split == HELD_OUT or rng.random() < 0.4 else invented_word(rng)
    if split == TRAIN and split_of_word(word) == HELD_OUT and word in WORDS:
        return spelling(rng, split)  # invented by chance
    letters = "-".join(word)
    question, answer = rng.choice([
        (f"Spell the word {word}.", letters), (f"Spell {word}.", letters), (f"How do you spell {word}?", letters),
        (f"How is {word} spelled?", letters), (f"Please spell {word}.", letters),
        (f"How many letters are in the word {word}?", f"{counted(word)}. There are {len(word)}."),
        (f"How many letters does {word} have?", f"{counted(word)}. There are {len(word)}."),
        (f"What is the first letter of {word}?", f"The first letter of {word} is {word[0]}."),
        (f"What is the last letter of {word}?", f"The last letter of {word} is {word[-1]}."),
    ])
    return [(ask(rng, question), answer)]


def odd_one_out(rng, split):
    def propose(rng):
        kind, other = rng.sample(list(CATEGORIES), 2)
        if {kind, other} in ({"animals", "birds"}, {"fruits", "vegetables"}, {"fruits", "colours"}):
            return propose(rng)
        words = rng.sample(CATEGORIES[kind], 3)
        odd = rng.choice([word for word in CATEGORIES[other] if word not in CATEGORIES[kind]])
        words.insert(rng.randrange(4), odd)
        sorted_out = ", ".join(f"{word}: {other if word == odd else kind}" for word in words)
        question = rng.choice(["Which is the odd one out: {}?", "Find the odd one out: {}.", "Which word does not belong: {}?",
                               "What is the odd one out here: {}?", "Pick the odd one out: {}."]).format(", ".join(words))
        return ",".join(sorted(words)), [(ask(rng, question), f"{sorted_out}. The others are {kind}, the odd one is of the {other}: {odd}.")]

    return draw(rng, split, "odd-one-out", propose)


# ---- reading -------------------------------------------------------------------------------------------------------------

def article(word):
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def said(person, relation, value, colour):
    return {"place": f"{person} is in the {value}.", "thing": f"{person} has {article(colour)} {value}.", "food": f"{person} likes {value}."}[relation]


def judged(sentence, value, asked):
    """What the passage says, for what the answer would be yes, and what it is."""
    return f"{sentence} {value}: yes, {asked}: {'yes' if value == asked else 'no'}."


def passage(rng, split):
    """A question about two to four sentences, each about another person; in training, more of them in further turns."""
    def propose(rng):
        people = rng.sample(NAMES, rng.randint(2, 4))
        told, values = [], {"place": [], "thing": [], "food": []}
        for person in people:
            relation = rng.choice(list(values))
            value = rng.choice([v for v in {"place": PLACES, "thing": OBJECTS, "food": FOODS}[relation] if v not in values[relation]])
            values[relation].append(value)
            told.append((person, relation, value, rng.choice(COLOURS)))
        questions = []
        for person, relation, value, colour in told:
            # A wrong value is often one that the passage names for somebody else.
            others = [v for v in values[relation] if v != value]
            wrong = rng.choice(others or {"place": PLACES, "thing": OBJECTS, "food": FOODS}[relation])
            sentence = said(person, relation, value, colour)
            asked = {"place": f"Is {person} in the {{}}?", "thing": f"Does {person} have a {{}}?", "food": f"Does {person} like {{}}?"}[relation]
            questions.append((asked.format(value), judged(sentence, value, value)))
            if wrong != value:
                questions.append((asked.format(wrong), judged(sentence, value, wrong)))
            if relation == "thing":
                other = rng.choice([c for c in COLOURS if c != colour])
                questions += [(f"Is the {value} {c}?", judged(f"The {value} is {colour}.", colour, c)) for c in (colour, other)]
            what = {"place": f"Where is {person}?", "thing": f"What does {person} have?", "food": f"What does {person} like?"}[relation]
            questions.append((what, sentence))
        yes = [q for q in questions if q[1].endswith("yes.")]
        no = [q for q in questions if q[1].endswith("no.")]
        what = [q for q in questions if q not in yes + no]

        def pick():
            return rng.choice(rng.choices([yes, no or what, what], [4, 4, 2])[0])

        text = " ".join(said(*fact) for fact in told)
        question, answer = pick()
        asked = rng.choice(["Read this: {} {}", "Passage: {} Question: {}", "{} {}", "Passage: {}\nQuestion: {}", "{}\n{}"])
        turns = [(asked.format(text, question), answer)]
        if split == TRAIN:
            turns += [pick() for _ in range(rng.choice([0, 1, 2, 3]))]
        return f"{text} {question}", turns

    return draw(rng, split, "passage", propose)


def lettered(rng, options):
    """Options with their letters, and what stands between them."""
    mark, joined = rng.choice([("{}. {}", "\n"), ("{}) {}", "\n"), ("({}) {}", "\n"), ("{}) {}", " ")])
    return joined.join(mark.format(letter, option) for letter, option in zip("ABCD", options)), joined


def multiple_choice(rng, split):
    def propose(rng):
        def other(values, right):
            values = sorted(set(values) - {right})
            return rng.sample(values, 3)

        kind = rng.randrange(8)
        if kind <= 2:
            country, (right, _) = rng.choice(list(COUNTRIES.items()))
            question, wrong = f"What is the capital of {country}?", other([c for c, _ in COUNTRIES.values()], right)
        elif kind == 3:
            word, right = rng.choice(OPPOSITES)
            question, wrong = f"What is the opposite of {word}?", other([o for _, o in OPPOSITES], right)
        elif kind == 4:
            animal, right = rng.choice(list(YOUNG.items()))
            question, wrong = f"What is a young {animal} called?", other(YOUNG.values(), right)
        elif kind == 5:
            a, b = rng.randint(1, 9), rng.randint(1, 9)
            right = str(a + b)
            question, wrong = f"What is {a} + {b}?", other(map(str, range(2, 19)), right)
        elif kind == 6:
            at = rng.randrange(12)
            right = MONTHS[(at + 1) % 12]
            question, wrong = f"Which month comes after {MONTHS[at]}?", other(set(MONTHS) - {MONTHS[at]}, right)
        else:
            verb, right = rng.choice(list(PAST.items()))
            question, wrong = f"What is the past tense of {verb}?", other(PAST.values(), right)
        options = wrong
        options.insert(rng.randrange(4), right)
        listed, joined = lettered(rng, options)
        letter = "ABCD"[options.index(right)]
        # Each letter after its option: then the one after the right answer is only to be copied.
        restated = ", ".join(f"{option} {letter}" for letter, option in zip("ABCD", options))
        answer = f"{restated}. It is {right} {letter}."
        return f"{question} {','.join(options)}", [(f"{question}{joined}{listed}", answer)]

    return draw(rng, split, "multiple-choice", propose)


# ---- earlier turns -------------------------------------------------------------------------------------------------------

def invented_name(rng):
    return invented_word(rng)[:8].capitalize()


def recall(rng, split):
    """Something told, up to three turns about other things, and the question for what was told."""
    def value(kind):
        while True:
            if kind in ("name", "dog", "friend"):
                drawn = rng.choice(NAMES) if split == HELD_OUT or rng.random() < 0.6 else invented_name(rng)
            elif kind == "number":
                drawn = str(rng.randint(2, 9999 if rng.random() < 0.3 else 99))
            elif kind == "city":
                drawn = rng.choice([city for city, _ in COUNTRIES.values()])
            else:
                drawn = rng.choice(COLOURS)
            if split_of("memory", f"{kind}:{drawn}") == split:
                return drawn

    kinds = {
        "name": (["My name is {}.", "Hi, I am {}.", "I am called {}.", "Hello! My name is {}."], "Nice to meet you, {}.",
                 ["What is my name?", "Do you remember my name?", "Who am I?", "Tell me my name."], "Your name is {}."),
        "number": (["My lucky number is {}.", "Remember the number {}.", "Please remember this number: {}."], "I will remember the number {}.",
                   ["What is my number?", "Which number did I tell you?", "What number should you remember?", "What was the number?"], "The number is {}."),
        "city": (["I live in {}.", "My home is in {}."], "I will remember that you live in {}.",
                 ["Where do I live?", "In which city do I live?", "Do you remember where I live?"], "You live in {}."),
        "colour": (["My favourite colour is {}.", "I like the colour {} best."], "I will remember that your favourite colour is {}.",
                   ["What is my favourite colour?", "Which colour do I like best?"], "Your favourite colour is {}."),
        "dog": (["My dog is called {}.", "I have a dog named {}."], "I will remember that your dog is called {}.",
                ["What is my dog called?", "What is the name of my dog?"], "Your dog is called {}."),
        "friend": (["My friend is called {}.", "I have a friend named {}."], "I will remember that your friend is called {}.",
                   ["What is my friend called?", "What is the name of my friend?"], "Your friend is called {}."),
    }
    told = rng.sample(list(kinds), rng.choice([1, 1, 1, 2]))
    values = {kind: value(kind) for kind in told}
    turns = [(rng.choice(kinds[kind][0]).format(values[kind]), kinds[kind][1].format(values[kind])) for kind in told]
    others = list(SINGLE_TURN.values())
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        turns += rng.choice(others)(rng, TRAIN)[:1]
    asked = rng.sample(told, len(told) if split == TRAIN else 1)
    turns += [(rng.choice(kinds[kind][2]), kinds[kind][3].format(values[kind])) for kind in asked]
    return turns


# ---- manners -------------------------------------------------------------------------------------------------------------

def small_talk(rng, split):
    said, answer = rng.choice(SMALL_TALK)
    return [(rng.choice(said), answer)]


def unknown(rng, split):
    """What it was not taught, it says that it does not know."""
    def propose(rng):
        words = sum(CATEGORIES.values(), []) + WORDS + list(COUNTRIES)
        question = rng.choice(UNKNOWN)
        filled = [rng.choice(words) if split == HELD_OUT or rng.random() < 0.7 else invented_word(rng) for _ in range(question.count("{}"))]
        return f"{question} {filled}", [(ask(rng, question.format(*filled)), UNKNOWN_ANSWER)]

    return draw(rng, split, "unknown", propose)


# Every skill, and its share of the training items.
SINGLE_TURN = {
    "capitals": capitals, "small-facts": small_facts, "times-tables": times_tables, "arithmetic": arithmetic, "comparing": comparing,
    "sorting": sorting, "counting": counting, "spelling": spelling, "odd-one-out": odd_one_out, "passage": passage,
    "multiple-choice": multiple_choice, "small-talk": small_talk, "unknown": unknown,
}
SKILLS = SINGLE_TURN | {"recall": recall}
SHARES = {"capitals": 6, "small-facts": 6, "times-tables": 7, "arithmetic": 8, "comparing": 8, "sorting": 11, "counting": 4, "spelling": 13,
          "odd-one-out": 8, "passage": 11, "multiple-choice": 10, "small-talk": 1, "unknown": 2, "recall": 5}
