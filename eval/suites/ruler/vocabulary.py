"""Words for keys and word lists, and made-up words where real ones run out."""

from __future__ import annotations

import random
import string
import uuid

from elastic_jax.errors import ConfigError
from eval.suites import words

ADJECTIVES = tuple(
    dict.fromkeys(
        [
            *words.COLOURS,
            *(
                "able ancient angry bitter bold brave brief bright broad calm careful cheap clean clever cold common "
                "cool cruel curious damp dark deep dense distant dry dull eager early easy empty exact faint fair "
                "false famous fast fierce final fine firm flat formal fragile free fresh gentle giant glad grand "
                "grave great happy hard harsh heavy hidden hollow honest huge humble hungry idle keen kind large late "
                "lazy light little lively lonely long loose loud loyal lucky mad merry mild modern modest narrow neat "
                "nervous noble noisy odd old open pale patient plain polite poor proud pure quick quiet rapid rare "
                "raw ready rich ripe rough round rude rural sad safe secret serious shallow sharp short shy silent "
                "simple slim slow small smart smooth soft solid sour spare stable steady steep stiff strange strict "
                "strong sudden sweet swift tall tame tender thick thin tidy tight tiny tired tough true urban useful "
                "vague vast vivid warm weak wet wide wild wise wooden young zealous"
            ).split(),
        ]
    )
)

NOUNS = tuple(
    dict.fromkeys(
        [
            *words.SECRET_WORDS,
            *words.THINGS,
            *(
                "actor album apple apron arrow artist atlas baker ball banner barn barrel beach bean bear bell belt "
                "bench berry bird blade boat bone book boot bottle bowl branch brass bread breeze brick broom brush "
                "bucket buffalo button cabin cable camel camera carpet carrot cart cave chain chair chalk cherry chess "
                "chimney circle city clerk cliff clock cloud clover coach coast coat coin comet cook copper cotton "
                "couch cousin crane crown curtain cushion dancer deer desk dish doctor doll donkey drum duck dust eel "
                "elbow envelope farmer fence field finger fish flag flame flute fog fork fox frog gardener giraffe "
                "glove goat grape grass guard gull hat hill hive hook horn horse hotel house hut ink iron island "
                "jaguar jar jelly judge jug key king kite knee knife knot lake lamp lawn leaf lemon letter library "
                "lion log loaf lynx mail map mask meal melon mill mine mole monk moon moose mouse mule museum nail "
                "nest net nurse oak oar office orange otter oven owl ox page paint palace pan paper park parcel path "
                "peach pear pen pepper pie pig pillow pilot pipe plane plate plum pocket poet pond pony porch post "
                "potato prince queen quill radio raft rail rain rake rat reed rice ring river road robin rock roof "
                "room root rope rose sailor salt sand scarf school seal seed sheep shell ship shirt shoe shop shore "
                "singer sister skate sled sleeve snail snake snow soap sock sofa soldier soup spade sparrow spoon "
                "square squid stable stage stair star station steam stone storm stove straw stream street swan sword "
                "table tailor tank tent thorn thread throne thumb toad tomato tower town toy train tray tree truck "
                "trumpet tube tulip turnip uncle vase vine wagon wall wand watch water wave weasel well whale wheat "
                "wheel wing wolf wood wool worm wren yard yarn"
            ).split(),
        ]
    )
)

_ONSETS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl l m n p pl pr qu r s sh sk sl sn sp st str t th tr v w z".split()
)
_VOWELS = "a e i o u ai ea ee oa oo ou".split()
_CODAS = "b ck d ft g l ld lm lt m mp n nd ng nt p r rd rk rm rn rt s sk sp ss st t th x z".split()


def made_up_word(rng: random.Random) -> str:
    """A pronounceable made-up word of two or three syllables."""
    syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 3)))]
    return "".join(syllables) + rng.choice(_CODAS)


def letters(rng: random.Random, count: int, alphabet: str = string.ascii_lowercase) -> str:
    return "".join(rng.choices(alphabet, k=count))


def random_number(rng: random.Random, digits: int) -> str:
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


class Unique:
    """Draws values of one kind that never repeat."""

    def __init__(self, rng: random.Random, kind: str):
        self._rng, self._kind, self._drawn = rng, kind, set()
        self._most = {"words": len(ADJECTIVES) * len(NOUNS), "numbers": 9 * 10**6}.get(kind)

    def draw(self) -> str:
        """A new value: `words` (adjective-noun), `numbers` (7 digits) or `uuids`; ConfigError when few are left."""
        if self._most is not None and len(self._drawn) > 0.9 * self._most:
            raise ConfigError(f"a prompt wants more than {len(self._drawn):,} different {self._kind}; ask for less.")
        while True:
            value = self._one()
            if value not in self._drawn:
                self._drawn.add(value)
                return value

    def _one(self) -> str:
        if self._kind == "words":
            return f"{self._rng.choice(ADJECTIVES)}-{self._rng.choice(NOUNS)}"
        if self._kind == "numbers":
            return random_number(self._rng, 7)
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
