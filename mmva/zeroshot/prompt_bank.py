"""The templates of musical prompts: genres and instruments, and where in the plane each belongs.

A template's home is the point for which it is filled when the caption tower places it; it is our own guess of where
such music lies and decides nothing else.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Template:
    """Music of one kind; mood, tempo, mode and loudness are filled in. The name is unique."""

    name: str
    genre: str
    instruments: str
    home: tuple[float, float]


TEMPLATES: Final[tuple[Template, ...]] = (
    Template("punk", "punk rock", "distorted guitars and pounding drums", (0.40, 0.92)),
    Template("thrash", "thrash metal", "palm-muted guitars and double bass drums", (0.15, 0.93)),
    Template("industrial", "industrial", "harsh synthesizers and metallic percussion", (0.20, 0.80)),
    Template("drum-and-bass", "drum and bass", "breakbeats and a growling bass", (0.45, 0.90)),
    Template("chase", "film chase", "staccato strings, low brass and taiko drums", (0.30, 0.86)),
    Template("horror", "horror film", "scraping strings and a low drone", (0.12, 0.70)),
    Template("thriller", "thriller", "a ticking pulse, muted piano and tremolo strings", (0.25, 0.66)),
    Template("dark-ambient", "dark ambient", "deep drones and distant bells", (0.22, 0.45)),
    Template("doom", "doom metal", "slow fuzzy guitars and a tolling bell", (0.15, 0.55)),
    Template("trip-hop", "trip hop", "a dusty drum loop, electric piano and sub bass", (0.38, 0.42)),
    Template("cello", "classical", "a solo cello", (0.22, 0.25)),
    Template("requiem", "choral", "a low choir and organ", (0.20, 0.35)),
    Template("piano-lament", "neoclassical", "a felt piano and faint strings", (0.25, 0.18)),
    Template("slow-blues", "blues", "a bottleneck guitar and brushed drums", (0.35, 0.32)),
    Template("fado", "fado", "a nylon guitar and an aching voice", (0.30, 0.38)),
    Template("music-box", "minimal", "a music box and tape hiss", (0.40, 0.15)),
    Template("drone", "drone", "a harmonium and bowed vibraphone", (0.45, 0.08)),
    Template("post-rock", "post-rock", "delayed guitars and swelling cymbals", (0.50, 0.55)),
    Template("jazz-ballad", "jazz ballad", "a breathy saxophone, piano and double bass", (0.55, 0.30)),
    Template("lo-fi", "lo-fi hip hop", "a mellow electric piano and soft drums", (0.62, 0.32)),
    Template("ambient", "ambient", "warm synthesizer pads", (0.68, 0.14)),
    Template("harp", "new age", "a harp and a wooden flute", (0.78, 0.16)),
    Template("acoustic-folk", "acoustic folk", "a fingerpicked guitar and soft humming", (0.74, 0.28)),
    Template("bossa-nova", "bossa nova", "a nylon guitar, shaker and upright bass", (0.78, 0.40)),
    Template("string-quartet", "classical", "a string quartet", (0.60, 0.45)),
    Template("gospel", "gospel", "a choir, organ and hand claps", (0.88, 0.70)),
    Template("soul", "soul", "a horn section, electric bass and tambourine", (0.80, 0.58)),
    Template("indie-pop", "indie pop", "jangling guitars and a light drum kit", (0.76, 0.60)),
    Template("ukulele", "children's", "a ukulele, glockenspiel and whistling", (0.90, 0.55)),
    Template("swing", "big band swing", "brass, clarinet and walking bass", (0.85, 0.74)),
    Template("funk", "funk", "slap bass, wah guitar and tight drums", (0.75, 0.76)),
    Template("reggae", "reggae", "an off-beat guitar, organ and round bass", (0.76, 0.50)),
    Template("samba", "samba", "surdos, tamborims and cavaquinho", (0.92, 0.84)),
    Template("disco", "disco", "a four-on-the-floor beat, strings and a funky bass", (0.88, 0.80)),
    Template("house", "house", "a pumping kick, piano chords and bright synthesizers", (0.82, 0.88)),
    Template("balkan-brass", "Balkan brass", "trumpets, tuba and a racing snare drum", (0.78, 0.94)),
    Template("orchestral-triumph", "orchestral", "a full orchestra with blazing horns", (0.84, 0.82)),
    Template("arena-rock", "arena rock", "ringing guitars, big drums and a chanting crowd", (0.72, 0.86)),
    Template("synthwave", "synthwave", "arpeggiated synthesizers and gated drums", (0.62, 0.70)),
    Template("tango", "tango", "a bandoneon, violin and piano", (0.48, 0.64)),
)
