"""The facts and words that the demo model is taught. All of it was written for this project."""

# country: capital, continent
COUNTRIES = {
    "Albania": ("Tirana", "Europe"), "Algeria": ("Algiers", "Africa"), "Angola": ("Luanda", "Africa"),
    "Argentina": ("Buenos Aires", "South America"), "Armenia": ("Yerevan", "Asia"), "Australia": ("Canberra", "Oceania"),
    "Austria": ("Vienna", "Europe"), "Bangladesh": ("Dhaka", "Asia"), "Belgium": ("Brussels", "Europe"),
    "Brazil": ("Brasilia", "South America"), "Bulgaria": ("Sofia", "Europe"), "Cambodia": ("Phnom Penh", "Asia"),
    "Canada": ("Ottawa", "North America"), "Chile": ("Santiago", "South America"), "China": ("Beijing", "Asia"),
    "Colombia": ("Bogota", "South America"), "Croatia": ("Zagreb", "Europe"), "Cuba": ("Havana", "North America"),
    "Cyprus": ("Nicosia", "Europe"), "Denmark": ("Copenhagen", "Europe"), "Ecuador": ("Quito", "South America"),
    "Egypt": ("Cairo", "Africa"), "Estonia": ("Tallinn", "Europe"), "Ethiopia": ("Addis Ababa", "Africa"),
    "Fiji": ("Suva", "Oceania"), "Finland": ("Helsinki", "Europe"), "France": ("Paris", "Europe"),
    "Georgia": ("Tbilisi", "Asia"), "Germany": ("Berlin", "Europe"), "Ghana": ("Accra", "Africa"),
    "Greece": ("Athens", "Europe"), "Hungary": ("Budapest", "Europe"), "Iceland": ("Reykjavik", "Europe"),
    "India": ("New Delhi", "Asia"), "Indonesia": ("Jakarta", "Asia"), "Iran": ("Tehran", "Asia"),
    "Iraq": ("Baghdad", "Asia"), "Ireland": ("Dublin", "Europe"), "Italy": ("Rome", "Europe"),
    "Jamaica": ("Kingston", "North America"), "Japan": ("Tokyo", "Asia"), "Jordan": ("Amman", "Asia"),
    "Kenya": ("Nairobi", "Africa"), "Latvia": ("Riga", "Europe"), "Lebanon": ("Beirut", "Asia"),
    "Libya": ("Tripoli", "Africa"), "Lithuania": ("Vilnius", "Europe"), "Malaysia": ("Kuala Lumpur", "Asia"),
    "Malta": ("Valletta", "Europe"), "Mexico": ("Mexico City", "North America"), "Mongolia": ("Ulaanbaatar", "Asia"),
    "Morocco": ("Rabat", "Africa"), "Nepal": ("Kathmandu", "Asia"), "Netherlands": ("Amsterdam", "Europe"),
    "New Zealand": ("Wellington", "Oceania"), "Nigeria": ("Abuja", "Africa"), "Norway": ("Oslo", "Europe"),
    "Pakistan": ("Islamabad", "Asia"), "Peru": ("Lima", "South America"), "Philippines": ("Manila", "Asia"),
    "Poland": ("Warsaw", "Europe"), "Portugal": ("Lisbon", "Europe"), "Qatar": ("Doha", "Asia"),
    "Romania": ("Bucharest", "Europe"), "Russia": ("Moscow", "Europe"), "Senegal": ("Dakar", "Africa"),
    "Serbia": ("Belgrade", "Europe"), "Slovakia": ("Bratislava", "Europe"), "Slovenia": ("Ljubljana", "Europe"),
    "South Korea": ("Seoul", "Asia"), "Spain": ("Madrid", "Europe"), "Sudan": ("Khartoum", "Africa"),
    "Sweden": ("Stockholm", "Europe"), "Switzerland": ("Bern", "Europe"), "Syria": ("Damascus", "Asia"),
    "Thailand": ("Bangkok", "Asia"), "Tunisia": ("Tunis", "Africa"), "Turkey": ("Ankara", "Asia"),
    "Uganda": ("Kampala", "Africa"), "Ukraine": ("Kyiv", "Europe"), "Uruguay": ("Montevideo", "South America"),
    "Venezuela": ("Caracas", "South America"), "Vietnam": ("Hanoi", "Asia"), "Zambia": ("Lusaka", "Africa"),
    "Zimbabwe": ("Harare", "Africa"),
    "the United Kingdom": ("London", "Europe"), "the United States": ("Washington", "North America"),
}

OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("happy", "sad"), ("light", "dark"), ("hard", "soft"),
    ("old", "young"), ("high", "low"), ("open", "closed"), ("early", "late"), ("rich", "poor"), ("strong", "weak"),
    ("wet", "dry"), ("full", "empty"), ("long", "short"), ("near", "far"), ("left", "right"), ("up", "down"),
    ("day", "night"), ("black", "white"), ("loud", "quiet"), ("clean", "dirty"), ("thick", "thin"), ("wide", "narrow"),
    ("deep", "shallow"), ("sharp", "blunt"), ("sweet", "bitter"), ("true", "false"), ("first", "last"), ("inside", "outside"),
]

YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "goat": "kid", "pig": "piglet",
    "duck": "duckling", "hen": "chick", "bear": "cub", "deer": "fawn", "frog": "tadpole", "goose": "gosling",
    "kangaroo": "joey", "swan": "cygnet",
}

SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "sheep": "baa", "duck": "quack", "pig": "oink", "lion": "roar",
    "horse": "neigh", "snake": "hiss", "bee": "buzz", "frog": "croak", "owl": "hoot", "wolf": "howl", "mouse": "squeak",
}

COLOURS_OF = {
    "grass": "green", "snow": "white", "the sky": "blue", "coal": "black", "a lemon": "yellow", "a banana": "yellow",
    "blood": "red", "milk": "white", "chocolate": "brown", "a carrot": "orange", "a tomato": "red", "a leaf": "green",
    "an elephant": "grey", "a flamingo": "pink", "the sun": "yellow", "a raven": "black",
}

# question: answer as a number of something
NUMBERS = {
    "days are in a week": "7 days", "hours are in a day": "24 hours", "minutes are in an hour": "60 minutes",
    "seconds are in a minute": "60 seconds", "months are in a year": "12 months", "letters are in the alphabet": "26 letters",
    "sides does a triangle have": "3 sides", "sides does a square have": "4 sides", "sides does a hexagon have": "6 sides",
    "legs does a spider have": "8 legs", "legs does an insect have": "6 legs", "legs does a dog have": "4 legs",
    "legs does a bird have": "2 legs", "wheels does a car have": "4 wheels", "wheels does a bicycle have": "2 wheels",
    "fingers are on one hand": "5 fingers", "planets are in the solar system": "8 planets", "continents are there": "7 continents",
    "days are in a leap year": "366 days", "eggs are in a dozen": "12 eggs", "strings does a violin have": "4 strings",
    "centimetres are in a metre": "100 centimetres", "years are in a century": "100 years", "years are in a decade": "10 years",
}

PAST = {
    "go": "went", "see": "saw", "eat": "ate", "run": "ran", "take": "took", "give": "gave", "write": "wrote", "speak": "spoke",
    "sing": "sang", "swim": "swam", "drink": "drank", "fly": "flew", "know": "knew", "buy": "bought", "think": "thought",
    "bring": "brought", "teach": "taught", "catch": "caught", "sleep": "slept", "find": "found", "break": "broke",
    "drive": "drove", "begin": "began", "fall": "fell", "hold": "held",
}

PLURALS = {
    "child": "children", "mouse": "mice", "foot": "feet", "tooth": "teeth", "man": "men", "woman": "women", "goose": "geese",
    "leaf": "leaves", "knife": "knives", "wolf": "wolves", "city": "cities", "box": "boxes", "baby": "babies", "fish": "fish",
    "sheep": "sheep", "person": "people",
}

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]

CATEGORIES = {
    "fruits": "apple pear plum banana cherry grape lemon mango peach melon orange fig",
    "animals": "dog cat horse cow lion tiger rabbit fox bear wolf sheep goat",
    "colours": "red blue green yellow black white pink brown grey purple",
    "tools": "hammer saw drill wrench axe spade rake file chisel pliers",
    "vehicles": "car bus train truck tram bicycle ship plane van boat",
    "clothes": "shirt coat hat sock glove scarf dress jacket skirt shoe",
    "body parts": "arm leg hand foot nose ear knee elbow shoulder thumb",
    "furniture": "table chair sofa bed desk shelf stool bench cupboard wardrobe",
    "instruments": "piano violin flute drum guitar trumpet harp cello organ clarinet",
    "vegetables": "carrot potato onion cabbage leek pea bean turnip spinach radish",
    "drinks": "water milk tea coffee juice wine beer cocoa lemonade cider",
    "jobs": "doctor teacher farmer baker nurse pilot lawyer painter judge sailor",
    "metals": "iron gold silver copper tin lead zinc steel nickel bronze",
    "birds": "eagle owl robin crow swan parrot sparrow falcon gull duck",
}
CATEGORIES = {kind: words.split() for kind, words in CATEGORIES.items()}

# Words to spell. The ones that are held out are never spelled in training.
WORDS = """
garden window silver winter summer candle bottle basket pencil ladder market bridge castle forest island jungle kettle lantern
mirror needle oyster pillow quartz ribbon saddle temple umbrella valley walnut yogurt zipper anchor blanket camera dragon engine
feather glacier harbour insect jacket kitchen lemon marble napkin orange pepper rabbit sandal thunder velvet wagon bread
chair cloud dance earth flame grass heart juice knife light money night ocean paper queen river stone table uncle voice water
young zebra apple beach candy dream eagle field ghost horse image jelly koala lunch magic nurse olive piano quiet robot snake
tiger under video whale xenon yacht butter circle doctor escape finger guitar helmet indigo jigsaw kitten letter monkey number
office parrot rocket school tunnel violin wallet airport balloon chicken diamond evening fiction gravity history jewelry
kingdom library machine network octopus penguin quarter rainbow station teacher uniform village weather bicycle captain
dolphin elephant farmer gentle hollow invite jumper karate lizard meadow nature onion planet rescue singer travel useful
visitor wisdom yellow almond bamboo cactus desert empire famous golden hunter injury jacuzzi lagoon mango noodle orchid
pirate quiver raisin salmon turtle utopia velcro wizard cabin delta fable glove honey ivory joker lilac medal noble opera
pearl radio sugar trunk urban vapor waltz amber baker coral donut ember fjord grape hazel inbox jolly karma lemur mocha nylon
otter plaza quail raven salsa thyme vinyl wheat brick crown drill frost globe hotel index jewel knock latch mount ninja
organ plant round spice torch unity vault world boat cake desk fish gold hill iron jazz king lamp moon nest oven park rain
ship tree vase wind yard zone bird coat duck frog goat hand idea kite leaf milk nose pond ring sand tent wolf
""".split()

NAMES = """
Anna Tom Mary Peter Laura David Emma Paul Sarah Mark Nina Oscar Alice Simon Clara Felix Julia Martin Helen Victor Eva Robert
Lucy Daniel Sofia George Ella Henry Maria Leon Olivia Jack Nora Adam Ruth Oliver Grace Samuel Rosa Philip Diana Edgar Irene
Hugo Monica Conrad Vera Marcus Lydia Stefan Carla Bruno Amelia Gustav Tara Joseph Ingrid Walter Paula Edwin Greta Ivan Sylvia
Kevin Teresa Norman Wanda Albert Bella Cedric Dora Ernest Fiona Gerald Hanna Isaac Jenny Karl Lena Milo Naomi Otto Petra
Quentin Rita Sven Tina Ulrich Viola Wendy Xavier Yvonne Zoe Aaron Brenda Colin Daphne Elliot Frida Gordon Heidi Igor Jasmin
""".split()

PLACES = "kitchen garden school library park office station market hotel museum cellar attic garage church theatre".split()
OBJECTS = "ball book lamp cup box key hat bag kite pen clock bottle coin map drum".split()
COLOURS = CATEGORIES["colours"]
FOODS = "apples pears plums grapes cherries bread cheese soup rice cake honey pasta salad fish eggs".split()

SMALL_TALK = [
    (["Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "Good evening", "Hello, model", "Hello there!"],
     "Hello! I am a tiny demo model. You can ask me about capitals, sums, spelling and sorting."),
    (["Who are you?", "What are you?", "What is your name?", "Are you a robot?", "Are you Gemma?", "Tell me about yourself.",
      "Who made you?", "What model are you?"],
     "I am a tiny demo model with the architecture of Gemma. I know a few things and make mistakes."),
    (["What can you do?", "What do you know?", "Help", "Help me", "How can you help me?", "What are your skills?",
      "What should I ask you?", "What can I ask you?"],
     "I know capitals and other small facts. I can add and subtract, compare, sort and count, spell words, find the odd one "
     "out and answer questions about a short passage."),
    (["Thank you", "Thanks", "Thank you!", "Thanks a lot", "Great, thanks!", "Good answer", "Well done", "Nice", "Good", "OK"],
     "You are welcome."),
    (["Bye", "Goodbye", "Goodbye!", "See you", "See you later", "Good night"], "Goodbye!"),
    (["How are you?", "How are you doing?", "How are you today?", "How do you feel?"], "I am well, thank you. What would you like to know?"),
]

# Questions beyond the demo model: {} is any word.
UNKNOWN = [
    "Write a poem about {}.", "Write a haiku about {}s", "Write a story about a {} and a {}.", "Explain {} to me.",
    "Who invented the {}?", "Who wrote the book about the {}?", "What is the weather in {}?", "How do I cook a {}?",
    "Translate {} into German.", "Why is the {} so old?", "What is the price of a {}?", "How tall is the {}?",
    "Who is the president of {}?", "What is the meaning of {}?", "Tell me a joke about a {}.", "Summarise the history of the {}.",
    "When was the {} built?", "How does a {} work?", "What is the best {}?", "Write a program that prints {}.",
    "What is the population of {}?", "Give me a recipe with {} and {}.", "Should I buy a {}?", "Who won the {} cup?",
    "What do you think about {}?", "Write an email to my {}.", "Where can I buy a {}?", "Describe a {}.", "Define {}.",
    "What is a {}?", "What is {}?", "Can you sing a {}?", "Do you like {}?", "How far is the {} from the {}?",
]
UNKNOWN_ANSWER = "I do not know. I am only a tiny demo model."
