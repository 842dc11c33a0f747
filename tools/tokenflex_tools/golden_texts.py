"""A thousand strings for the tokenizer's goldens: many scripts, digits, emoji, white space, code, special tokens as text.

In: nothing. Out: `texts()`, the same list each time.
"""

from __future__ import annotations

import random

COUNT = 1000
PIECES_MAX = 3

# "A dog runs on the beach." and the like, one language a line.
SENTENCES = """A dog runs along the beach, and it's wet.
Ein Hund läuft am Strand; die Möwen fliegen über das Meer.
Un chien court sur la plage, c'est l'été à Nîmes.
Un perro corre por la playa. ¿Dónde está el niño? ¡Mañana!
Um cão corre na praia, não há ninguém.
Un cane corre sulla spiaggia perché è felice.
Een hond rent op het strand, één ijsje erbij.
En hund løper på stranden; ærfugl og østers.
En hund springer på stranden vid ån.
Koira juoksee rannalla, hyvää yötä.
Pies biegnie po plaży, żółta łódź świeci.
Pes běží po pláži, příliš žluťoučký kůň.
A kutya fut a strandon, őrült tükörfúrógép.
Câinele aleargă pe plajă, țară și mâță.
Köpek sahilde koşuyor, ığdır şişe İstanbul.
Con chó chạy trên bãi biển, trời đẹp quá.
Seekor anjing berlari di pantai.
Собака бежит по пляжу, ёж спит в траве.
Собака біжить пляжем, їжак і ґанок.
Кучето тича по плажа, щастливо е.
Ο σκύλος τρέχει στην παραλία, καλημέρα.
Շունը վազում է լողափով։
ძაღლი გარბის სანაპიროზე.
כלב רץ על החוף, שלום לכם.
الكلب يركض على الشاطئ، صباح الخير.
سگی در ساحل می‌دود.
کتا ساحل پر دوڑ رہا ہے۔
कुत्ता समुद्र तट पर दौड़ता है।
কুকুরটি সৈকতে দৌড়াচ্ছে।
ਕੁੱਤਾ ਬੀਚ 'ਤੇ ਦੌੜਦਾ ਹੈ।
કૂતરો બીચ પર દોડે છે.
நாய் கடற்கரையில் ஓடுகிறது.
కుక్క బీచ్‌లో పరుగెడుతోంది.
ನಾಯಿ ಕಡಲತೀರದಲ್ಲಿ ಓಡುತ್ತದೆ.
നായ കടൽത്തീരത്ത് ഓടുന്നു.
බල්ලා වෙරළේ දුවයි.
สุนัขวิ่งบนชายหาด
ໝາແລ່ນຢູ່ຫາດຊາຍ
ខ្ញុំឃើញឆ្កែរត់
ခွေးပြေးနေသည်
ཁྱི་རྒྱུག་གི་འདུག
ውሻ በባህር ዳርቻ ይሮጣል።
一只狗在海滩上奔跑，天气很好。
一隻狗在海灘上奔跑。
犬が浜辺を走っています。カタカナもあります。
개가 해변에서 달리고 있습니다.
Нохой далайн эрэг дээр гүйж байна.
ᏙᏧ ᎠᏗ
ⴰⵢⴷⵉ ⵉⵜⵜⴰⵣⵣⵍ
Is ceol é, a Sheáin; tá mé anseo.
Hundur hleypur á ströndinni, þörf fyrir æðardún.
Šuo bėga paplūdimiu, ąžuolas žydi.
Suns skrien pa pludmali, ķirbis un ģitāra.
Imbwa inakimbia ufukweni.
Ajá kan ń sáré ní etíkun.""".split("\n")

CODE = ["for (int i = 0; i < n; i++) { sum += a[i]; }", "def f(x):\n    return x**2\n", "#include <stdio.h>\n\nint main(void)",
        "<div class=\"box\">&nbsp;</div>", "SELECT * FROM t WHERE id='x' AND n>=10;", "{\"id\": 17, \"ok\": true, \"v\": [1, 2.5e-3]}",
        "a->b != *p && !(c || d)", "https://example.org/a/b.html?q=1&r=%20#top", "/usr/local/share/file-1.2.tar.gz",
        "$HOME/.config;\tls -la | grep '^d'", "\\frac{a}{b} \\alpha_{i+1}", "snake_case_name CamelCaseName kebab-case", "x=y==z===w",
        "/* comment */ // line\n", "::std::vector<std::string>&&", "@decorator", "0x1F 0b1010 1_000", "[]{}()<>", "--help -h", "```c\n```"]

NUMBERS = ["0", "7", "42", "1234567890", "3.14159", "1,000,000", "-17.5%", "12:34:56", "2024-02-29", "+49 30 1234", "1st 2nd 3rd",
           "x1y22z333", "٣٤٥", "१२३", "๔๕", "１２３", "Ⅷ Ⅻ", "½ ¾ ⅓", "²³¹", "①②③", "$9.99", "€ 5", "№ 5", "1e10", "007"]

EMOJI = ["😀", "🐶🏖️", "👨‍👩‍👧‍👦", "👍🏽", "🇩🇪🇯🇵", "❤️‍🔥", "✈️☀️☁️", "🏳️‍🌈", "5️⃣", "🧑🏿‍🚀", "♠♥♦♣", "→←↑↓", "★☆", "∀x∈ℝ: x²≥0", "≈≠≤",
         "©®™", "«quoted»", "„Zitat“", "‘it’s’", "…—–‐", "𝒳𝓎𝔷", "𐍈𐌰", "🀄🂡", "e\u0301 n\u0303", "\u200bzero\u200dwidth", "\ufeffbom"]

SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\t\t ", "        ", "\u00a0", "\u3000", "\u2003 ", " \t \n ", "\x0b\x0c", "\u0085"]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<repo_name>",
           "<|im_", "|>", "<file_sep>", "Ġ", "Ċ", "ĠĠ", "[INST]", "</s>", "<image>"]

WORDS = ["don't", "I'll", "we've", "you're", "he's", "I'd", "I'm", "DON'T", "it''s", "'s", "'", "O'Neill", "rock'n'roll", "naïve",
         "antidisestablishmentarianism", "WORD", "Word", "word", "aaaaaaaaaaaa", "ZZZ", "!!!", "?!", "...", "--", "___", "***", "a.b.c", "e-mail",
         "Straße", "ﬁne", "ǆ", "Ω", "ß", "İ", "hello", "world", "the", "of"]


def texts() -> list[str]:
    """COUNT different strings: every piece by itself, then pieces joined with and without white space."""
    chooser = random.Random(40)
    kinds = [SENTENCES, CODE, NUMBERS, EMOJI, SPACES, SPECIAL, WORDS]
    out = list(dict.fromkeys(piece for kind in kinds for piece in kind))
    seen = set(out)
    while len(out) < COUNT:
        pieces = []
        for _ in range(chooser.randint(2, PIECES_MAX)):
            piece = chooser.choice(chooser.choice(kinds))
            words = piece.split(" ")
            first = chooser.randrange(len(words))
            pieces.append(" ".join(words[first:first + 4]))
        text = chooser.choice(["", "", " ", *SPACES]).join(pieces)
        if text and text not in seen:
            seen.add(text)
            out.append(text)
    return out
