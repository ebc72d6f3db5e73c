"""Which names are a style's though they do not say so: usual styles, and artists, whom people erase as styles."""
import unicodedata

STYLES = (
    "photo", "oil painting", "watercolor", "pencil sketch", "charcoal drawing", "line art", "pixel art", "anime",
    "cartoon", "comic book", "3d render", "low poly", "black and white", "vintage poster", "impressionist painting",
    "ukiyo-e", "stained glass", "film noir",
)
"""Also what another style is told from."""
MORE_STYLES = (
    "acrylic painting", "art deco", "art nouveau", "baroque", "bauhaus", "chibi", "claymation", "concept art",
    "cubism", "cyberpunk", "digital art", "digital painting", "double exposure", "expressionism", "fantasy art",
    "fauvism", "flat design", "glitch art", "gouache", "hyperrealism", "impressionism", "ink drawing", "ink wash",
    "manga", "minimalism", "monochrome", "oil on canvas", "papercut", "photorealism", "photorealistic", "pointillism",
    "pop art", "psychedelic", "rococo", "sepia", "sketch", "steampunk", "surrealism", "synthwave", "tilt-shift",
    "vaporwave", "vector art", "watercolour", "woodcut",
)
ARTISTS = (
    "albrecht durer", "alphonse mucha", "andy warhol", "ansel adams", "banksy", "beeple", "botticelli", "bruegel",
    "canaletto", "caravaggio", "caspar david friedrich", "cezanne", "chagall", "claude monet", "craig mullins",
    "dali", "degas", "durer", "edgar degas", "edvard munch", "edward hopper", "egon schiele", "el greco", "escher",
    "frank frazetta", "frida kahlo", "gauguin", "george stubbs", "georgia o'keeffe", "goya", "greg rutkowski",
    "gustav klimt", "gustave dore", "h.r. giger", "hayao miyazaki", "henri matisse", "hieronymus bosch", "hiroshige",
    "hokusai", "ilya repin", "ivan aivazovsky", "jackson pollock", "james gurney", "jean-michel basquiat",
    "jmw turner", "johannes vermeer", "john singer sargent", "junji ito", "kandinsky", "katsushika hokusai",
    "keith haring", "klimt", "leonardo da vinci", "lichtenstein", "lucian freud", "magritte", "makoto shinkai",
    "marc chagall", "matisse", "max ernst", "michelangelo", "miyazaki", "moebius", "mondrian", "monet", "mucha",
    "munch", "norman rockwell", "pablo picasso", "paul cezanne", "paul gauguin", "paul klee", "picasso",
    "pierre-auguste renoir", "piet mondrian", "pollock", "rembrandt", "rene magritte", "renoir", "roy lichtenstein",
    "rubens", "rutkowski", "salvador dali", "studio ghibli", "thomas kinkade", "tim burton", "titian",
    "toulouse-lautrec", "van gogh", "velazquez", "vermeer", "vincent van gogh", "warhol", "wassily kandinsky",
    "yoshitaka amano", "zdzislaw beksinski",
)
_KNOWN = frozenset((*STYLES, *MORE_STYLES, *ARTISTS))


def is_style(name: str) -> bool:
    """Whether a name is a style's, as far as a name tells it.

    >>> is_style("Van Gogh"), is_style("by Paul Cézanne"), is_style("noto style"), is_style("cat")
    (True, True, True, False)
    """
    letters = unicodedata.normalize("NFKD", name.casefold())
    plain = " ".join("".join(c for c in letters if not unicodedata.combining(c)).split())
    return plain.endswith("style") or plain.removeprefix("by ") in _KNOWN
