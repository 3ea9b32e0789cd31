"""Word lists from which probes draw; `elastic_jax.text.split.split_of` decides which entries evaluation may use."""

from __future__ import annotations

COLOURS = (
    "red blue green yellow purple orange brown black white grey silver golden crimson violet scarlet turquoise "
    "ivory copper emerald amber"
).split()

THINGS = (
    "door gate chest cabinet vault locker drawer garage cellar attic workshop warehouse lighthouse greenhouse "
    "elevator safe trunk wardrobe kiosk hangar"
).split()

FIRST_NAMES = (
    "Marta Leopold Ingrid Tobias Yusuf Amelia Dmitri Rosalind Hector Noemi Casper Beatrix Osvaldo Petra Lionel Freya "
    "Gustavo Helena Ivan Jolanda Kenji Livia Magnus Nadia Oscar Paloma Quentin Ramona Stefan Tamara Ulrich Valeria "
    "Wendell Ximena Yolanda Zachary Agnes Bruno Celeste Damien Elena Fabian Greta Hugo Irene Joachim Katrina Lorenzo "
    "Miriam Nicolas Ophelia Pascal Renata Silas Theodora Umberto Veronica Walter Yvonne Zelda Anton Bianca Conrad "
    "Daphne Emilio Felicity Gideon Harriet Isidore Juliana Klaus Lavinia Matteo Nigel Octavia Priscilla Rupert Sabrina "
    "Thaddeus Ursula Vincent Winifred Adrian Bridget Cedric Dolores Edmund Flora Gregor Hilda"
).split()

FAMILY_NAMES = (
    "Hansen Lindqvist Moreau Castellano Okafor Brandt Petrov Sandoval Whitaker Nakamura Ferreira Novak Dubois Eriksen "
    "Marchetti Ashworth Kowalski Villanueva Thornton Bergman Delacroix Iversen Rosenthal Santoro Wexler Halloran "
    "Vasquez Pemberton Lombardi Schreiber"
).split()

CITIES = (
    "Vienna Lisbon Prague Dublin Oslo Helsinki Warsaw Budapest Athens Cairo Nairobi Lagos Toronto Montreal Chicago "
    "Boston Seattle Denver Havana Lima Bogota Santiago Madrid Barcelona Valencia Seville Porto Geneva Zurich Munich "
    "Hamburg Dresden Rotterdam Antwerp Brussels Bruges Marseille Bordeaux Toulouse Milan Venice Florence Naples "
    "Palermo Istanbul Ankara Beirut Damascus Baghdad Tehran Mumbai Calcutta Bangkok Hanoi Manila Jakarta Singapore "
    "Shanghai Beijing Seoul Tokyo Osaka Kyoto Sydney Melbourne Auckland Glasgow Edinburgh Cardiff Belfast Manchester "
    "Liverpool Bristol Philadelphia Pittsburgh Cleveland Detroit Houston Dallas Atlanta Miami Memphis Nashville "
    "Baltimore Vancouver Quebec Tunis Tripoli Algiers Casablanca"
).split()

SECRET_WORDS = (
    "velvet lantern harbor meadow thunder pebble orchard compass feather glacier marble saddle whistle blanket candle "
    "dragon engine falcon garden hammer island jacket kettle ladder magnet needle oyster pencil quartz ribbon shadow "
    "temple umbrella violin walnut anchor basket canyon desert eagle forest guitar helmet jungle kitten lemon mirror "
    "ocean pepper rabbit silver tiger tunnel valley window yellow zebra bridge castle diamond elephant fountain "
    "granite hurricane ivory jasmine koala lobster mountain nutmeg olive panther rocket sapphire tornado volcano "
    "willow acorn beetle cactus dolphin emerald flamingo ginger hazel iceberg juniper lizard mango nectar onion parrot "
    "raven spider turtle vanilla walrus apricot bamboo coral daisy ferry goose hornet jewel lotus maple"
).split()
