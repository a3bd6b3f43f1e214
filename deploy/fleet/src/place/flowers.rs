//! The names of clusters.

use std::collections::BTreeSet;

/// Names that are DNS labels, in the order in which they are used.
pub const FLOWERS: [&str; 72] = [
    "peony",
    "tulip",
    "violet",
    "aster",
    "lily",
    "iris",
    "rose",
    "dahlia",
    "orchid",
    "daisy",
    "lotus",
    "poppy",
    "jasmine",
    "lavender",
    "marigold",
    "camellia",
    "magnolia",
    "hyacinth",
    "crocus",
    "freesia",
    "gardenia",
    "gentian",
    "geranium",
    "gladiolus",
    "hibiscus",
    "hydrangea",
    "jonquil",
    "larkspur",
    "lilac",
    "lobelia",
    "lupin",
    "mallow",
    "mimosa",
    "myrtle",
    "narcissus",
    "nasturtium",
    "oleander",
    "pansy",
    "petunia",
    "phlox",
    "plumeria",
    "primrose",
    "protea",
    "ranunculus",
    "snowdrop",
    "sunflower",
    "thistle",
    "trillium",
    "verbena",
    "veronica",
    "wisteria",
    "yarrow",
    "zinnia",
    "anemone",
    "azalea",
    "begonia",
    "bluebell",
    "buttercup",
    "calendula",
    "campion",
    "carnation",
    "celandine",
    "clematis",
    "columbine",
    "cornflower",
    "cyclamen",
    "daffodil",
    "delphinium",
    "edelweiss",
    "foxglove",
    "fuchsia",
    "heather",
];
/// The last number after a name: `peony-9`.
const NUMBER_MAX: u32 = 9;

/// The first name that is not taken; after all names come `peony-2` and so on.
#[must_use]
pub fn next(taken: &BTreeSet<String>) -> Option<String> {
    let plain = FLOWERS.iter().map(|name| (*name).to_owned());
    let numbered = (2..=NUMBER_MAX).flat_map(|n| FLOWERS.iter().map(move |name| format!("{name}-{n}")));
    plain.chain(numbered).find(|name| !taken.contains(name))
}
