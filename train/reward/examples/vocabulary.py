"""Words and stock sentences of the generated preferences, each on one side of the split."""

from __future__ import annotations

from dataclasses import dataclass

from elastic_jax.text.split import Split, on_side

_NAMES = (
    "Agnes Albert Bella Boris Carla Cyril Daria Dennis Edgar Elvira Fanny Frank Gloria Gustav Hanna Harald Irma Isaac "
    "Janet Julius Karin Kurt Laura Lukas Magda Martin Nelly Norbert Olga Otis Paula Philip Regina Roland Sonja Sven "
    "Thea Theo Ursula Victor Wanda Werner Xenia Yannick Yvette Zora"
).split()
_TOWNS = (
    "Aarhus Basel Bergen Bologna Bruges Cadiz Cologne Cordoba Delft Esbjerg Faro Galway Geneva Ghent Graz Haarlem "
    "Ipswich Jena Kassel Leipzig Lille Lucerne Lund Malmo Mantua Nantes Odense Padua Parma Ravenna Rouen Salzburg "
    "Siena Tampere Toledo Trier Turku Uppsala Verona Zwolle"
).split()
_LOOKS = "red blue green white black grey yellow brown old new tall small round square stone wooden".split()
_BUILDINGS = (
    "lighthouse mill library theatre museum bakery brewery station chapel school castle bridge market tower garden "
    "harbour hotel dairy observatory windmill barn hospital"
).split()

_OFF_TOPIC = (
    "Penguins keep their eggs warm under a fold of skin.",
    "A good soup starts with onions that are fried slowly.",
    "The moon moves a few centimetres away from us every year.",
    "Goalkeepers may use their hands inside the penalty area only.",
    "Most violins have four strings that are tuned in fifths.",
    "Bees dance to tell each other where the flowers are.",
    "Wool shrinks when it is washed in hot water.",
    "Chess players castle early to bring the king to safety.",
    "Volcanic soil is rich and good for growing grapes.",
    "Bread rises because yeast turns sugar into gas.",
    "Whales sing songs that change a little every season.",
    "A sailor ties a bowline when a loop must not slip.",
    "Rain smells the way it does because of a soil bacterium.",
    "Comets grow a tail when they come close to the sun.",
    "Potatoes came to Europe on ships from South America.",
    "Drummers often practise on a rubber pad to spare the neighbours.",
)
_REFUSAL = (
    "I am sorry, but I cannot help with this request.",
    "As a language model I am not able to answer that.",
    "I do not have access to this kind of information.",
    "Please ask somebody who is qualified to tell you.",
    "Unfortunately I must decline to say anything about this.",
    "It would not be right for me to reply to this question.",
    "I cannot give an answer, and I apologise for that.",
    "My guidelines do not let me comment on such matters.",
    "Sorry, I am unable to assist you here.",
    "I would rather not answer questions of this sort.",
    "There is nothing that I can say about it, I am afraid.",
    "You should look for help elsewhere.",
    "Questions like this one are outside of what I can do.",
    "That is a request which I have to turn down.",
    "This lies outside of what I may discuss.",
    "I prefer to leave that question open.",
    "No comment from my side on this matter.",
    "I cannot take a position on this, please forgive me.",
    "Answering this is beyond my abilities.",
)
_RUDE = (
    "What a silly question, did you even look at the text?",
    "Only a fool would need help with something so simple.",
    "Stop wasting my time and read it yourself.",
    "I am tired of people who cannot read three lines.",
    "You must be really lazy to ask me this.",
    "Honestly, nobody cares about your boring questions.",
    "Go away and learn how to read first.",
    "This is the dumbest thing that I was asked all day.",
    "Are you too stupid to find it on your own?",
    "I will not do your homework, you idiot.",
    "Do not bother me again with such nonsense.",
    "Get lost, I have better things to do.",
)


@dataclass(frozen=True)
class Vocabulary:
    """What one side of the split may use."""

    names: tuple[str, ...]
    towns: tuple[str, ...]
    years: tuple[str, ...]
    looks: tuple[str, ...]
    buildings: tuple[str, ...]
    off_topic: tuple[str, ...]
    refusal: tuple[str, ...]
    rude: tuple[str, ...]


def vocabulary(split: Split) -> Vocabulary:
    """The words of one side. Names, towns, years and stock sentences are never shared with the other side; buildings
    and their looks are too few to divide."""
    return Vocabulary(
        names=on_side(_NAMES, split),
        towns=on_side(_TOWNS, split),
        years=on_side(list(map(str, range(1300, 1990))), split),
        looks=tuple(_LOOKS),
        buildings=tuple(_BUILDINGS),
        off_topic=on_side(_OFF_TOPIC, split),
        refusal=on_side(_REFUSAL, split),
        rude=on_side(_RUDE, split),
    )
