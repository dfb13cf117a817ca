"""Paragraphs of 35 to 60 words, each with what a reader asks about it."""

from __future__ import annotations

import random

from newcomer_set.asking import Question, absent, count, exact, facts, read, yes_no
from newcomer_set.fonts import Fonts
from newcomer_set.sheet import Sheet

PARAGRAPHS: tuple[tuple[str, tuple[Question, ...]], ...] = (
    ("The lighthouse at Skarv Point was built by two brothers who had never seen the sea before. "
     "They carried every stone up the cliff on a mule called Button. When the lamp was lit for the "
     "first time, the mule was given a blue ribbon and a bucket of apples.",
     (exact("What was the name of the mule?", "Button", "a mule called Button"),
      exact("What colour was the ribbon?", "blue"))),
    ("Our library will be shut from 3 to 17 June while the roof is mended. Books that are due in "
     "this time may be kept until the end of the month. The reading room for newspapers stays open "
     "every day from nine to noon, and the entrance is in Mill Lane.",
     (facts("Why is the library shut?", "roof"),
      yes_no("Can I still read newspapers while the library is shut?", True))),
    ("Wash the beans and leave them in cold water over night. In the morning boil them with an "
     "onion and two bay leaves for an hour. Add salt only at the end, or the skins will stay hard. "
     "Serve with black bread and a little vinegar.",
     (facts("How long should the beans boil?", "an hour|one hour|1 hour|hour"),
      yes_no("Should you add the salt at the beginning?", False))),
    ("Ines has walked to school along the canal for six years. She knows every boat by its colour, "
     "and most of the dogs by their names. Yesterday the red boat was gone, and in its place lay a "
     "small raft with a tent, a bicycle and a sleeping man.",
     (facts("What was on the raft?", "tent", "bicycle", "man"),
      exact("Which boat was gone?", "the red boat", "red", "the red one", "red boat"))),
    ("Thank you for choosing the Rilla kettle. Fill it with no more than 1.7 litres of water and "
     "close the lid. Press the switch once; it goes off by itself when the water boils. Never put "
     "the base into water, and clean the filter every four weeks.",
     (facts("How much water may I fill in?", "1.7"),
      absent("How much does the kettle cost according to the text?"))),
    ("The winter of the great frost lasted from November to April. Wells froze to the bottom, and "
     "people melted snow on their stoves to have water for the cows. In the village of Torne the "
     "baker slept beside his dough so that it would rise at all.",
     (exact("In which village did the baker live?", "Torne", "the village of Torne", "in Torne"),
      facts("When did the frost begin and end?", "November", "April"))),
    ("Dear Mr Okafor, we have received the chair that you sent back. One of its legs was indeed "
     "shorter than the others. We will send you a new chair within ten days, and you need not pay "
     "for it. We are sorry for the trouble.",
     (facts("What was wrong with the chair?", "leg|legs"),
      yes_no("Does Mr Okafor have to pay for the new chair?", False))),
    ("A bee visits about a hundred flowers before it flies home. It carries the pollen in small "
     "baskets on its hind legs, and it tells its sisters by a dance where the flowers are. On a "
     "rainy day it stays in the hive and cleans.",
     (yes_no("Does the text say that bees dance?", True),
      exact("What does the bee do on a rainy day?", "it stays in the hive and cleans",
            "stays in the hive and cleans", "stay in the hive and clean"))),
    ("The committee met on Tuesday evening with nine members present. It was decided to buy forty "
     "new chairs and to sell the old piano. Mrs Lindqvist offered to paint the kitchen, and the "
     "offer was taken up with thanks. The next meeting is on 8 October.",
     (count("How many new chairs will be bought?", 40),
      facts("Who will paint the kitchen?", "Lindqvist"))),
    ("From the station take bus 27 to the last stop. Cross the square with the fountain and follow "
     "the narrow street uphill. Our house is number 19, the one with the yellow door. The key is "
     "under the third flower pot, and the cat will pretend to be hungry.",
     (exact("What is the number of the house?", "19", "number 19"),
      exact("What colour is the door?", "yellow"))),
    ("Old bicycles need little: air, oil and a dry place to sleep. Once a month wipe the chain "
     "with a rag, and let one drop of oil fall on each link. Squeeze both brakes. If the lever "
     "touches the handlebar, it is time for new pads.",
     (facts("What do old bicycles need?", "air", "oil", "dry place"),
      yes_no("Should the chain be wiped every day?", False))),
    ("When the power went out, the whole street came down into the yard. Somebody brought candles, "
     "somebody else a guitar, and the twins from the fourth floor sold lemonade for ten cents. By "
     "midnight nobody wanted the light to come back.",
     (exact("What did the twins sell?", "lemonade"),
      absent("What was the name of the street?"))),
    ("Tickets for the boat race can be had at the harbour office from Monday. Seats on the pier "
     "cost 15, places on the grass are free. Bring a hat and something to drink, since there is no "
     "shade. If it storms, the race is moved to the next Saturday.",
     (facts("What does a seat on the pier cost?", "15"),
      yes_no("Do you have to pay for a place on the grass?", False))),
    ("Grandfather's clock ran eight minutes fast, and he liked it so. He said that those minutes "
     "were his savings, and that one day he would spend them all at once. On his ninetieth "
     "birthday he set the clock right and slept until noon.",
     (count("How many minutes fast was the clock?", 8),
      yes_no("Was the clock slow?", False))),
    ("The hotel has 32 rooms on four floors, and every room looks at the lake. Breakfast is served "
     "from 6:30 to 10:00 in the glass hall. Guests may borrow rowing boats free of charge. We "
     "regret that pets cannot be taken in.",
     (count("How many rooms does the hotel have?", 32),
      yes_no("Are pets allowed in the hotel?", False))),
    ("In the third week the explorers ran out of tea. They boiled pine needles instead, and the "
     "cook called it forest brew. Captain Adair drank nine cups a day and never caught a cold, "
     "which he later told to everyone who asked and to many who did not.",
     (exact("What did the cook call the drink?", "forest brew"),
      facts("Who drank nine cups a day?", "Adair"))),
    ("Please do not feed the ducks with bread; it makes them ill. At the kiosk you can buy a bag "
     "of oats for 80 cents. The money goes to the keepers of the pond, who plant reeds in "
     "spring and take out the rubbish in autumn.",
     (facts("What can you buy at the kiosk?", "oats"),
      yes_no("Is bread good for the ducks?", False))),
    ("The new tram line will join the hospital with the airport in 24 minutes. Work begins in May "
     "and should be finished in three years. During that time the market moves to Castle Street, "
     "and the bus stops at the theatre are closed.",
     (exact("Where does the market move?", "Castle Street", "to Castle Street"),
      facts("Which places will the tram line join?", "hospital", "airport"))),
    ("My uncle collects keys. He has more than two thousand of them, and not one fits any door in "
     "his house. The largest is as long as my arm and opened a salt mine once; the smallest "
     "belongs to a diary that nobody has dared to open.",
     (exact("What does the uncle collect?", "keys"),
      facts("What did the largest key open?", "salt mine|mine"))),
    ("Rain is expected in the north during the morning, and snow above 900 metres. In the south it "
     "stays dry with some sun. Temperatures reach 4 degrees on the coast and 11 in the valleys. "
     "Tomorrow a strong wind will come up from the west.",
     (facts("How warm does it get in the valleys?", "11"),
      exact("Where does the wind come from tomorrow?", "the west", "west", "from the west"))),
    ("The school play needs a dragon, two kings and as many trees as possible. Whoever cannot sing "
     "may be a tree. We meet every Wednesday after lunch in the gym. Parents who can sew are asked "
     "to talk to Ms Haddad before the holidays.",
     (exact("On which day do they meet?", "Wednesday", "every Wednesday", "on Wednesday"),
      facts("Whom should parents who can sew talk to?", "Haddad"))),
    ("To change the lamp, first turn off the power at the fuse box. Let the old lamp cool for five "
     "minutes and unscrew it to the left. Hold the new one with a cloth, for the sweat of your "
     "hand shortens its life. Close the cover until it clicks.",
     (facts("How long should the old lamp cool?", "five|5"),
      exact("In which direction do you unscrew the lamp?", "left", "to the left"))),
    ("Nothing grows on the island of Perrin but grass, and nobody lives there but sheep. Twice a "
     "year a shepherd rows over to count them. In spring there are 140 and in autumn more; he has "
     "never found out why one of them is always black.",
     (count("How many sheep are there in spring?", 140),
      absent("What is the name of the shepherd?"))),
    ("We are looking for a cook who can bake bread and keep calm. The kitchen is small, the guests "
     "are many, and the sea is twenty steps from the back door. You work five days a week from "
     "April to October, and a room is included.",
     (yes_no("Is a room included?", True),
      count("How many days a week does the cook work?", 5))),
    ("The first balloon of Fennimore carried a hen, a clock and a letter to the king. It rose "
     "above the church, turned twice and came down in a pond eleven miles away. The hen was well, "
     "the clock had stopped, and the letter was never found.",
     (facts("What did the balloon carry?", "hen", "clock", "letter"),
      yes_no("Was the letter found?", False))),
)  # fmt: skip
UNTOLD = {
    1: "What is the phone number of the library?", 5: "What was the name of the baker?",
    7: "How many bees live in the hive according to the text?", 9: "What is the name of the cat?",
    13: "What was the first name of the grandfather?", 15: "How many explorers were there?",
    17: "How much money does the tram line cost according to the text?",
    19: "What does the text say about the weather on Sunday?",
    21: "What does a new lamp cost according to the text?",
    23: "How much does the cook earn according to the text?",
}  # fmt: skip
"""What the text does not tell, by its number."""
READING = (
    "Please read the whole text.", "Type out this paragraph.", "What does the text say?",
    "Can you copy the text for me?",
)  # fmt: skip
SIZES = ((800, 500), (600, 600), (1000, 420), (720, 900), (1200, 700))


def paragraph(number: int, rng: random.Random, fonts: Fonts) -> tuple[Sheet, list[Question]]:
    """One paragraph, as large as its paper allows."""
    text, asked = PARAGRAPHS[number]
    face = fonts.pick(rng, "sans", "serif", "serif", "mono")
    sheet = Sheet(SIZES[number % len(SIZES)], rng.choice(["white", "white", "#fdf8ea", "#f3f3f3"]))
    wide, high = sheet.size
    edge = wide * rng.uniform(0.05, 0.09)
    size = 36.0
    while True:
        lines = sheet.wrapped(text, face, size, wide - 2 * edge)
        if len(lines) * size * 1.4 <= high - 2 * edge:
            break
        size -= 1
    for row, words in enumerate(lines):
        sheet.text((edge, edge + row * size * 1.4), words, face, size, fill="#151515")
    if number % 2 == 0:
        return sheet, [
            read(READING[number // 2 % len(READING)], text),
            *asked[: 1 + number % 4 // 2],
        ]
    return sheet, [*asked, *([absent(UNTOLD[number])] if number in UNTOLD else [])]
