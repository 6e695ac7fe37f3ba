//! Common short words, which most tokenizers write as one token each.

/// The words.
pub(crate) const WORDS: [&str; 240] = [
    "about", "above", "across", "act", "add", "again", "age", "ago", "air", "all", "alone",
    "along", "animal", "answer", "area", "arm", "art", "ask", "away", "back", "bad", "ball",
    "bank", "base", "bear", "beat", "bed", "before", "begin", "behind", "best", "better", "big",
    "bird", "black", "blood", "blue", "board", "boat", "body", "book", "both", "box", "boy",
    "bring", "brother", "build", "busy", "call", "car", "care", "carry", "case", "catch", "cause",
    "center", "change", "check", "child", "city", "class", "clear", "close", "cold", "color",
    "come", "common", "cool", "copy", "corner", "country", "course", "cover", "cross", "cry",
    "cut", "dark", "day", "deal", "deep", "direct", "door", "down", "draw", "dream", "dress",
    "drive", "dry", "early", "earth", "east", "easy", "eat", "edge", "egg", "end", "energy",
    "even", "ever", "eye", "face", "fact", "fall", "family", "farm", "fast", "father", "feel",
    "field", "figure", "fill", "final", "find", "fine", "finger", "fire", "fish", "floor", "fly",
    "follow", "food", "foot", "force", "form", "free", "friend", "front", "full", "game", "garden",
    "girl", "give", "glass", "gold", "good", "great", "green", "ground", "group", "grow", "hair",
    "half", "hand", "happy", "hard", "head", "hear", "heart", "heat", "heavy", "high", "hill",
    "history", "hold", "horse", "hot", "hour", "house", "human", "ice", "idea", "inside", "iron",
    "island", "job", "join", "jump", "keep", "key", "kind", "king", "land", "language", "large",
    "late", "laugh", "law", "lead", "learn", "leave", "left", "letter", "level", "life", "light",
    "line", "list", "listen", "local", "long", "love", "machine", "map", "mark", "market", "match",
    "matter", "measure", "meet", "member", "metal", "middle", "mind", "minute", "money", "moon",
    "morning", "mother", "mountain", "mouth", "move", "music", "name", "nature", "near", "new",
    "night", "north", "note", "number", "ocean", "office", "oil", "old", "open", "order", "page",
    "paper", "part", "party", "people", "person", "picture", "piece", "place", "plan", "plane",
    "plant", "play", "point",
];
