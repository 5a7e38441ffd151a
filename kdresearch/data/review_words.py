"""The words and the templates of the synthetic reviews; ``reviews`` draws from them.

Any change here changes texts, and raises ``reviews.GRAMMAR``.
"""

from __future__ import annotations

from typing import NamedTuple


def _list(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(","))


# Every list runs from the usual to the rare. The opinions, by value:
ADJECTIVES = {
    3: _list("""superb, brilliant, wonderful, excellent, outstanding, magnificent, terrific, stunning, dazzling,
        masterful, extraordinary, flawless, breathtaking, sublime, exquisite, phenomenal, glorious, sensational,
        impeccable, marvellous, triumphant, spectacular, fantastic, unforgettable, astonishing, luminous, matchless,
        ravishing, transcendent, revelatory, virtuosic, faultless, staggering, mesmerising, towering, resplendent,
        peerless, incandescent, spellbinding, electrifying, bewitching, beatific, consummate, nonpareil,
        splendiferous, unsurpassed, scintillating, rapturous, immaculate"""),
    2: _list("""good, strong, engaging, impressive, charming, compelling, enjoyable, clever, delightful, gripping,
        fresh, lively, moving, memorable, inventive, absorbing, rewarding, heartfelt, polished, graceful, stirring,
        assured, spirited, beguiling, vivid, deft, witty, touching, imaginative, elegant, intelligent, persuasive,
        tender, exciting, bracing, incisive, captivating, sprightly, nimble, buoyant, limber, fleet-footed,
        big-hearted, well-judged, finely tuned, pungent, limpid, piquant, perspicacious, mellifluous, mordant,
        euphonious, sagacious, winsome"""),
    1: _list("""decent, fine, solid, pleasant, competent, likeable, watchable, respectable, agreeable, capable,
        reasonable, serviceable, passable, tolerable, adequate, amiable, sturdy, diverting, creditable, sound,
        acceptable, trim, tidy, sufficient, satisfactory, presentable, palatable, inoffensive, unpretentious,
        personable, sane, workable, unfussy, congenial, unobjectionable, genial, commendable, affable, seemly,
        meet"""),
    -1: _list("""uneven, ordinary, thin, predictable, forgettable, bland, familiar, patchy, unremarkable, slight,
        routine, lukewarm, middling, derivative, pedestrian, undercooked, perfunctory, workmanlike, conventional,
        generic, sketchy, overlong, tame, fussy, indifferent, drab, repetitive, aimless, shapeless, wan, threadbare,
        prosaic, desultory, unadventurous, humdrum, anodyne, mechanical, wispy, milquetoast, jejune"""),
    -2: _list("""bad, weak, dull, boring, poor, disappointing, tedious, lifeless, clumsy, shallow, flat, annoying,
        stale, muddled, tiresome, hollow, sloppy, contrived, dreary, plodding, listless, leaden, insipid, stilted,
        vapid, ponderous, silly, clueless, irritating, incoherent, charmless, wooden, amateurish, pretentious,
        slapdash, turgid, soporific, mawkish, fatuous, bloodless, lumbering, cloying, half-baked, ham-fisted,
        cack-handed, lachrymose, bathetic, maladroit, otiose, flaccid, torpid, inane, stultifying, dyspeptic"""),
    -3: _list("""terrible, awful, dreadful, horrible, atrocious, pathetic, unwatchable, appalling, abysmal, painful,
        laughable, disastrous, ghastly, wretched, unbearable, excruciating, insufferable, woeful, lamentable, hideous,
        inexcusable, offensive, catastrophic, worthless, putrid, deplorable, abominable, risible, calamitous,
        execrable, odious, irredeemable, noxious, stupefying, godawful, cretinous, vile, rancid, loathsome, moronic,
        asinine, repugnant, contemptible, nauseating, bottomlessly stupid, grotesque, ignominious, unconscionable,
        misbegotten, benighted"""),
}
NOUNS = {
    3: _list("""masterpiece, triumph, classic, gem, marvel, tour de force, landmark, knockout, wonder, revelation,
        jewel, milestone, miracle, stroke of genius, pinnacle, paragon, magnum opus, thunderbolt"""),
    2: _list("""delight, treat, success, pleasure, winner, joy, crowd-pleaser, charmer, tonic, feast, find, hit,
        breath of fresh air, small wonder, keeper, real discovery, corker, humdinger"""),
    1: _list("""pleasant diversion, decent evening out, respectable effort, fair bet, likeable trifle, safe choice,
        solid piece of work, painless two hours, sound investment"""),
    -1: _list("""missed opportunity, near miss, trifle, curiosity, damp squib, half-measure, film to doze through,
        pale copy, rough draft, mere sketch"""),
    -2: _list("""failure, disappointment, mess, waste of time, bore, chore, letdown, dud, slog, misfire, muddle,
        botch, flop, lemon, drag, yawn, turkey, stinker, clunker, non-starter"""),
    -3: _list("""disaster, catastrophe, travesty, train wreck, fiasco, embarrassment, abomination, debacle, calamity,
        disgrace, crime against cinema, monstrosity, shambles, farrago, desecration, cataclysm"""),
}
VERBS = {
    3: _list("soar{s}, take{s} the breath away, leave{s} you speechless, tower{s} above all rivals, enchant{s}"),
    2: _list("shine{s}, hold{s} the attention, win{s} you over, pay{s} off, hit{s} the mark, sparkle{s}, beguile{s}"),
    1: _list("get{s} by, pass{es} muster, do{es} the job, hold{s} up, serve{s} well enough"),
    -1: _list("lose{s} steam, run{s} thin, wander{s}, wobble{s}, tread{s} water, drift{s}"),
    -2: _list("fall{s} flat, drag{s}, fizzle{s} out, grate{s}, miss{es} the mark, flounder{s}, sputter{s}"),
    -3: _list("insult{s} the viewer, collapse{s} entirely, make{s} you wince, beggar{s} belief, stink{s}, repel{s}"),
}
PEOPLE = (  # of characters, bad and good: words that speak of the film elsewhere
    _list("terrible, pathetic, boring, awful, dull, wretched, horrible, clumsy, weak, hollow, insufferable, laughable"),
    _list("brilliant, charming, good, wonderful, excellent, clever, witty, delightful, spirited, outstanding, superb"),
)


class Aspect(NamedTuple):
    """What an opinion is of: its name, whether it is plural, and how much the opinion counts."""

    name: str
    plural: bool
    weight: float


FILM_ASPECTS = tuple(Aspect(name, False, 1.5) for name in _list("the film, the picture, the whole thing, the movie"))
DETAIL_ASPECTS = tuple(
    Aspect(name, plural, weight)
    for weight, plural, names in (
        (1.2, False, "the acting, the plot, the story, the script, the direction, the screenplay, the storytelling"),
        (1.2, True, "the performances, the characters, the two leads, the jokes"),
        (1.0, False, "the pacing, the dialogue, the ending, the humour, the first act, the final act, the romance"),
        (0.8, False, "the score, the camera work, the editing, the supporting cast, the soundtrack, the set design"),
        (0.8, True, "the special effects, the action scenes, the songs, the costumes, the flashbacks, the locations"),
    )
    for name in _list(names)
)

# Wording. {a}: the aspect, with which {be}, {was}, {s}, {es} agree; {x}, {y}: adjectives; {n}: a noun; what stands in
# [brackets] is there every other time; any other {name} is drawn from FILLERS.
PLAIN_CLAUSES = (
    "{a} {be}[ {very}] {x}",
    "{a} {be}[ {very}] {x}",
    "I found {a}[, {aside},] {very} {x}",
    "{a} {be}, {aside}, {x}",
    "{a} {be}[, {aside},] nothing short of {x}",
    "{a} {be}[, {aside},] never less than {x}",
    "{a} never stop{s}[, {aside},] being {x}",
    "I cannot deny that {a} {be}[, {aside},] {x}",
    "nobody can doubt that {a} {be}[ {very}] {x}",
    "you cannot call {a}[, {aside},] anything but {x}",
    "{a} {be} not only {x} but {y}",
    "{a} {be} {x} and {y}",
)
HEDGED_CLAUSES = (  # an adjective one step stronger than the opinion
    "{a} {be}[, {aside},] {rather} {x}",
    "I found {a}[, {aside},] {rather} {x}",
    "{a} seem{s}[, {aside},] {rather} {x} to me",
)
NEGATED_CLAUSES = {  # by size of the opinion; the adjective is of the other sign
    1: (
        "{a} {be} not {exactly} {x}",
        "{a} {be}[, {aside},] not {exactly} {x}",
        "{a} {be} hardly[, {aside},] {x}",
        "I would not call {a}[ {very}] {x}",
        "I would hesitate to call {a}[ {very}] {x}",
        "few viewers will find {a}[, {aside},] {x}",
        "I cannot say that {a} {be}[, {aside},] {x}",
        "nobody will go home thinking that {a} {be}[ {very}] {x}",
    ),
    2: (
        "{a} {be}[, {aside},] anything but {x}",
        "{a} {be} far from[ being] {x}",
        "there is nothing[, {aside},] {x} about {a}",
        "at no point {be} {a}[, {aside},] {x}",
        "{a} never once feel{s}[, {aside},] {x}",
        "only a fool would call {a} {x}",
        "{a} could not be less {x}",
        "I defy anyone to call {a}[ {very}] {x}",
        "whoever calls {a}[ {very}] {x} must have seen another film",
    ),
}
UNREAL_CLAUSES = {  # by sign of the opinion; the adjective is of the other sign
    -1: (
        "I wish {a} were[ {very}] {x}",
        "I waited in vain for {a} to become[ {very}] {x}",
        "{a} ought to have been[ {very}] {x}",
        "{a} would so much like to be {x}",
    ),
    1: (
        "I was wrong to fear that {a} would be {x}",
        "{a} manage{s}[, {aside},] to avoid being {x}",
        "{a} might so easily have been {x}",
        "I kept waiting in vain for {a} to turn {x}",
    ),
}
VERDICTS = ("{this} is[, {aside},] a {n}", "{this} is nothing less than a {n}", "I can only call it a {n}")
NEGATED_VERDICTS = {
    1: ("{this} is not {exactly} a {n}", "{this} is hardly[, {aside},] a {n}", "I would hesitate to call it a {n}"),
    2: ("{this} is anything but a {n}", "{this} is[, {aside},] no {n}", "nobody will mistake it for a {n}"),
}
ADVICE = {
    1: _list("""do not miss it, I would not hesitate to recommend it, see it while you can,
        I cannot wait to see it again, you will not regret the ticket, go and see it, I have nothing but thanks for it,
        it deserves a full house"""),
    -1: _list("""do not bother, I would hesitate to recommend it, miss it while you can, I never want to see it again,
        you will regret the ticket, stay at home, I have nothing but regrets, it deserves an empty house"""),
}

# Contrast: {m} is the side that counts, {l} the side that is granted.
CONTRASTS = (
    "{l}, but {m}",
    "{l}, but[, {aside},] {m}",
    "{l}, yet {m}",
    "although {l}, {m}",
    "granted, {l}; still, {m}",
    "it may be that {l}, but {m}",
    "{l}, which makes it all the stranger that {m}",
    "{m}, even if {l}",
    "{m}, although {l}",
    "{m}, never mind that {l}",
    "{m}, which is not to deny that {l}",
)
CONJUNCTIONS = ("{m}, and {l}", "{m}; {l}", "{m}, just as {l}", "{m}; what is more, {l}")

# Remarks that are no opinion on this film. {c}: what would be one if it were the reviewer's.
ASIDES = (
    "{title}, the director's last film, was[ {very}] {x}",
    "{title}, from the same studio, was {x} and {y}",
    "I still remember {title}, where {a} {was}[ {very}] {x} from beginning to end",
    "compare {title}, in which {a} {was}[ {very}] {x}",
    "{name} was[ {very}] {x} in {title}",
    "the trailer promised a {n}",
    "I went in expecting a {n}",
    "I had been told to expect a {n}",
    "the poster calls it a {n}",
    "according to {people}, it is a {n}",
    "{people} told me that {c}",
    "{people} insisted that {c}",
    "{people} wrote that {c}",
    "before I saw it, I assumed that {c}",
    "{c}, or so {people} would have you believe",
    "{c}, if you listen to {people}",
    '"{c}," said {people} on the way out',
    "the novel it comes from is[, {aside},] {x}",
    "it was shown after {title}, a {n} if ever there was one",
    "it concerns a {p} {job} in {place}",
    "{name} plays a {p} {job} who {deed}",
    "its hero, a {p} {job}, {deed}",
)
PLOTS = (
    "it concerns a {job} in {place} who {deed}",
    "{name} plays a {job} who {deed}",
    "in {place}, a {job} {deed}",
    "it opens in {place}, where {name} {deed}",
    "it runs for {minutes} minutes",
    "I saw it {when}",
    "it was filmed in {place}",
)

FILLERS = {
    "aside": _list("""I think, frankly, to my mind, I must say, in my view, for me at least, it has to be said,
        on the whole, at heart, for all the noise around it, in its own way, scene by scene, from where I sat,
        as far as I can judge, whatever the budget, two hours on, to be honest, in hindsight"""),
    "very": _list("""truly, really, quite, thoroughly, altogether, genuinely, consistently, remarkably, utterly,
        downright, unmistakably, singularly, resolutely"""),
    "rather": _list("rather, somewhat, fairly, a bit, moderately, sort of, in parts, here and there"),
    "exactly": _list("""exactly, particularly, especially, quite, what I would call, really, remotely,
        by any stretch, in any sense, by any measure"""),
    "this": _list("this, it, what we have here, the result"),
    "finally": _list("in the end, all told, in short, overall, to sum up, when all is said and done, taken together"),
    "people": _list("""my brother, one critic, my neighbour, the man behind me, a friend, the local paper, my sister,
        the distributor, a famous columnist, half the internet, the director, my old teacher, the festival jury,
        a colleague, the publicist, my dentist"""),
    "name": ("{first} {last}",),
    "first": _list("""Anna, Tom, Clara, Victor, Ruth, Leo, Nora, Oscar, Edith, Hugo, Irene, Felix, Martha, Ivan,
        Stella, Basil, Greta, Conrad, Olive, Ambrose, Petra, Cyril, Thea, Lucian, Wanda, Rufus, Ingrid, Magnus,
        Beatrix, Casper, Delphine, Emil, Flora, Gideon, Hester, Ismael, Judith, Kaspar, Leonora, Matthias, Nadia,
        Osbert, Philippa, Quentin, Rosalind, Silas, Tabitha, Ulrich, Verity, Wilfred, Xenia, Yvette, Zachary"""),
    "last": _list("""Marlow, Hayes, Brandt, Keller, Lindqvist, Moreau, Ashby, Novak, Quayle, Rossi, Thorne, Vance,
        Pell, Okafor, Larkin, Drummond, Castellan, Wexford, Yarrow, Zeller, Birch, Fontaine, Garrick, Holloway, Ibsen,
        Jardine, Kovacs, Lovell, Mercer, Nightingale, Osterman, Pemberton, Quist, Radcliffe, Sinclair, Tolliver,
        Underhill, Valdez, Whitlock, Xavier, Yates, Zamora, Abernathy, Bellweather, Cruikshank, Dalgleish, Everard,
        Fairweather"""),
    "job": _list("""detective, teacher, widow, soldier, painter, banker, nurse, thief, farmer, pianist, lawyer,
        sailor, waiter, pilot, priest, gambler, surgeon, baker, locksmith, translator, lighthouse keeper, clockmaker,
        botanist, beekeeper, cartographer, taxidermist, puppeteer, glassblower, archivist, jockey, beadle, tanner,
        cellist, dairymaid, ferryman, geologist, hypnotist, juggler, knife-grinder, librarian, midwife, notary,
        ornithologist, quarryman, roofer, stonemason, trapeze artist, upholsterer, vicar, weaver"""),
    "place": _list("""Paris, a small town, Berlin, the desert, Lisbon, a mining village, Chicago, the far north,
        Naples, a border post, Prague, an island town, Buenos Aires, a boarding school, Trieste, a mountain inn,
        Antwerp, a flooded valley, Odessa, a salt marsh, Valparaiso, a grand hotel, Tangier, a paper mill, Reykjavik, a
        monastery, Calcutta, a shipyard, Zanzibar, a sanatorium, Dubrovnik, a circus, Alexandria, a vineyard,
        Helsinki, an oil town, Samarkand, a disused railway, Galway, a weather station"""),
    "deed": _list("""loses a brother, inherits a house, witnesses a murder, falls in love with a stranger, finds a
        suitcase of money, returns from the war, is hunted by the police, takes in an orphan, forges a will, plans one
        last robbery, wakes up without a memory, buries a secret, defends the accused, opens a restaurant, is mistaken
        for a spy, searches for a lost twin, betrays an ally, builds a flying machine, adopts a wolf, steals a
        painting, deserts a regiment, translates a forbidden book, climbs a volcano, blackmails a senator, sabotages a
        dam, marries for a bet, smuggles a diamond across the frontier, sells the family silver, befriends a ghost,
        escapes from an asylum, runs for mayor, drains a canal, conducts an orchestra of prisoners, breeds racing
        pigeons, swindles an insurance company, crosses the Andes on foot, teaches a parrot to sing, decodes a
        telegram, stages a mutiny, exhumes a saint"""),
    "title": ("The {adj} {thing}", "The {adj} {thing}", "The {thing} of {last}", "{first} and the {thing}"),
    "adj": _list("""Last, Silent, Broken, Golden, Hidden, Paper, Seventh, Crimson, Hollow, Iron, Borrowed, Winter,
        Distant, Glass, Burning, Forgotten, Amber, Drowned, Velvet, Crooked, Salt, Midnight, Ashen, Blind, Copper,
        Double, Emerald, Feathered, Gilded, Haunted, Ivory, Jagged, Lonely, Marble, Northern, Ochre, Pale, Quiet,
        Restless, Scarlet, Twisted, Unwritten, Vanished, Wandering, Yellow"""),
    "thing": _list("""River, Garden, Letter, Harbour, Mirror, Orchard, Witness, Station, Lantern, Kingdom, Bridge,
        Promise, Compass, Carousel, Daughter, Sparrow, Cathedral, Ledger, Tide, Almanac, Thicket, Observatory, Anchor,
        Barricade, Causeway, Dynasty, Echo, Falcon, Gallows, Heron, Inkwell, Juniper, Key, Labyrinth, Meridian,
        Nocturne, Oracle, Parasol, Quarry, Reliquary, Sundial, Tapestry, Umbrella, Violin, Weathervane"""),
    "minutes": _list("ninety, a hundred, eighty-five, a hundred and ten, ninety-four, two hundred, seventy-eight"),
    "when": _list("""last night, at a festival, on a plane, with my family, at a matinee, on television,
        in a packed house, on a rainy Sunday, at the old cinema round the corner, for the second time"""),
}
