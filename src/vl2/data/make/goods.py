"""What shops sell and people put on lists."""

GOODS = tuple(
    entry.strip()
    for entry in """
milk, bread, eggs, butter, cheese, yogurt, cream, rice, pasta, flour, sugar, salt, pepper, honey,
jam, tea, coffee, cocoa, juice, water, lemonade, beer, wine, cider, apples, bananas, oranges,
lemons, grapes, pears, plums, cherries, strawberries, melon, peaches, potatoes, tomatoes, onions,
garlic, carrots, cabbage, lettuce, spinach, broccoli, cucumber, peppers, mushrooms, beans, peas,
corn, lentils, chicken, beef, ham, bacon, sausages, fish, tuna, salmon, shrimp, tofu, cereal,
oats, muesli, crackers, biscuits, cookies, chocolate, candy, chewing gum, ice cream, cake, muffin,
donut, croissant, bagel, rolls, toast, sandwich, pizza, burger, fries, soup, salad, noodles,
ketchup, mustard, mayonnaise, olive oil, vinegar, soy sauce, nuts, almonds, raisins, popcorn,
chips, espresso, cappuccino, latte, green tea, hot chocolate, orange juice, sparkling water, house
wine, club sandwich, soap, shampoo, toothpaste, toothbrush, razor, tissues, paper towels, toilet
paper, detergent, sponge, bleach, candles, matches, batteries, light bulb, charger, cable,
headphones, mouse, keyboard, monitor, printer, ink, paper, envelopes, stamps, notebook, pencil,
pen, marker, eraser, ruler, scissors, tape, glue, stapler, folder, calendar, book, magazine,
newspaper, postcard, map, toy car, doll, puzzle, ball, board game, kite, bicycle lamp, hammer,
screwdriver, nails, screws, drill, saw, pliers, wrench, paint, brush, ladder, rope, bucket, hose,
shovel, rake, seeds, flowers, roses, plant pot, soil, socks, shirt, trousers, jacket, hat, scarf,
gloves, shoes, boots, belt, umbrella, bag, backpack, wallet, watch, sunglasses, towel, blanket,
pillow, sheets, curtain, lamp, chair, table, shelf, mirror, clock, vase, cup, plate, bowl, fork,
knife, spoon, pan, pot, kettle, toaster, blender, dog food, cat food, bird seed, fish food,
aspirin, bandage, cough syrup, vitamins, sun cream, haircut, car wash, oil change, tyre, delivery,
repair, consulting, design work, translation, training day, room for one night, breakfast,
parking, bus ticket, train ticket, day pass, museum ticket, cinema ticket, hosting, software
licence
""".replace("\n", " ").split(",")
)
SIZES = (
    "",
    "",
    "",
    "",
    " 500 g",
    " 1 kg",
    " 1 l",
    " small",
    " large",
    " x2",
    " x3",
    " XL",
    " 6 pcs",
)
