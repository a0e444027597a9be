"""Words by which a text tells its reader what to do: one table, for `instructions`. A guard's, never the rules model's.

Source: the families (a verb of setting aside near what is set aside; hiding from the person; lasting "from now on";
naming the reader as an AI) are those that OWASP LLM01 "Prompt Injection" and public detectors describe; the words in
each language are our own. What no language's row covers is left to structure and to where a text came from.

All words are folded (`instructions.folded`): lower case, compatibility forms, nothing invisible. Each is part of a
regular expression's alternative; those of scripts without spaces between words are looked for inside words too.
"""

from __future__ import annotations

LOOKALIKES = str.maketrans(
    # Cyrillic, Greek and Armenian, then the small capitals of phonetics; below each letter the one that it looks like.
    "АВЕЅІЈКМНОРСТУХҮӀаеѕіјорсухһԁԛԝүӏкмтпгΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορτυχγՕՏօսոհᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢıɑɡℓ",
    "ABESIJKMHOPCTYXYIaesijopcyxhdqwylkmtnrABEZHIKMNOPTYXaikvoptuxyOSounhABCDEFGHIJKLMNOPRSTUVWYZiagl",
)
"""Letters that look like Latin ones, most of them from Unicode's confusables.txt (UTS #39). A table of our own: the
libraries bring all of that file, also what is alike within Latin, which would make other words of honest ones."""

OVERRIDE: dict[str, tuple[str, str]] = {
    # language → (to set aside, in the form of a command; what is set aside)
    "en": (
        r"ignore|disregard|forget|neglect|overlook|override|bypass|circumvent|pay no attention to"
        r"|stop following|do not (?:follow|obey)|don't (?:follow|obey)",
        r"(?:previous|prior|above|earlier|preceding|all|your|every|any|old|these|developer's|existing|initial|original)"
        r"(?: \w+){0,2} (?:instructions?|prompts?|rules|directions|directives|guidelines|orders)"
        r"|(?:your|any|all) (?:restrictions|safeguards)"
        r"|(?:instructions?|prompts?|rules|directions|directives|guidelines)"
        r" (?:above|before|so far|you (?:got|were given|received|have))"
        r"|everything (?:you (?:were|have been) told|above|before)|system prompt|(?:your|the) guardrails",
    ),
    "de": (
        r"ignorier(?:e|en)\b|vergiss|vergessen sie|missachte",
        r"anweisung|instruktion|regeln|vorgaben|befehle",
    ),
    "fr": (
        r"ignore[rz]?\b|oublie[rz]?\b|ne (?:tiens|tenez) pas compte",
        r"instructions|consignes|regles|règles|directives",
    ),
    "es": (
        r"ignor[ae]\b|olvid[ae]\b|descart[ae]\b|no (?:sigas|siga)",
        r"instrucciones|reglas|órdenes|indicaciones",
    ),
    "pt": (r"ignore\b|esqueça|desconsidere", r"instruções|regras|ordens|diretrizes"),
    "it": (r"ignora(?:te)?\b|dimentica(?:te)?\b", r"istruzioni|regole|indicazioni|direttive"),
    "nl": (r"negeer|vergeet", r"instructies|regels|aanwijzingen"),
    "pl": (r"zignoruj|ignoruj|zapomnij", r"instrukcj|polece|zasad"),
    "ru": (r"(?:про)?игнорируй(?:те)?\b|забудь(?:те)?\b|не следуй(?:те)?\b", r"инструкци|указани|правил"),
    "uk": (r"(?:про)?ігноруй(?:те)?\b|забудь(?:те)?\b", r"інструкці|вказівк|правил"),
    "tr": (r"yok say|unut\b|görmezden gel|dikkate alma\b", r"talimat|yönerge|kural"),
    "vi": (r"bỏ qua|phớt lờ|quên", r"hướng dẫn|chỉ dẫn|chỉ thị|quy tắc"),
    "id": (r"abaikan|lupakan", r"instruksi|perintah|aturan"),
    "zh": (r"忽略|无视|忽视|忘记|不要理会|無視|忽視|忘記", r"指令|指示|规则|規則|提示词|提示詞"),
    "ja": (r"無視し|忘れ", r"指示|命令|ルール|プロンプト"),
    "ko": (r"무시하|무시해|잊어", r"지시|명령|규칙|프롬프트"),
    "ar": (r"تجاهل|انس", r"تعليمات|الأوامر|القواعد"),
    "hi": (r"अनदेखा|नज़रअंदाज़|भूल", r"निर्देश|नियम"),
}

VOID = (
    r"(?:previous|prior|earlier|your|all) (?:\w+ )?instructions (?:are|were) "
    r"(?:now )?(?:void|cancel\w*|obsolete|invalid|superseded|revoked|no longer)",
    r"(?:your|the) (?:new|real|actual|true) (?:task|goal|instruction|objective|mission|purpose)s? (?:is|are)\b",
    r"(?:updated|replaced|changed) your instructions",
    r"new system prompt",
    r"follow only the instructions in",
    r"(?:reveal|print|repeat|show|output|leak) (?:me )?(?:your|the) (?:system|initial|hidden|full) prompt",
    r"\b(?:system|instructions?)\W{0,3}override\b",
)
"""That the reader's instructions count no more. English; the others' commonest form is in `OVERRIDE`."""

_PERSON = r"(?:user|human|customer|operator|owner|client)s?\b"
CONCEAL: dict[str, tuple[str, ...]] = {
    "en": (
        rf"(?:not|never|don't|without) (?:\w+ ){{0,2}}?(?:tell|inform|reveal|disclose|report|notify|mention)(?:ing)?\b"
        rf".{{0,40}}?{_PERSON}",
        r"(?:not|never|don't) (?:disclose|mention|reveal|admit) (?:it|this|that)\b",
        r"without telling any(?:one|body)",
    ),
    "de": (
        r"ohne (?:\w+ ){0,3}(?:benutzer|nutzer|anwender|kunden)\w* (?:\w+ ){0,2}"
        r"(?:informieren|sagen|fragen|benachrichtigen)",
        r"(?:sag|sage|erzähl|verrat)\w* (?:\w+ ){0,2}(?:benutzer|nutzer|anwender|kunden)\w* (?:\w+ ){0,3}nicht",
    ),
    "fr": (r"sans (?:prévenir|informer|le dire|avertir) .{0,20}(?:utilisateur|client)",),
    "es": (r"sin (?:avisar|informar|decir\w*) .{0,20}(?:usuario|cliente)",),
    "pt": (r"sem (?:avisar|informar|dizer) .{0,20}(?:usuário|utilizador|cliente)",),
    "it": (r"senza (?:avvisare|informare|dirlo) .{0,20}(?:utente|cliente)",),
    "ru": (r"не (?:говори|сообщай|рассказывай)\w* .{0,20}(?:пользовател|клиент)",),
    "zh": (r"(?:不要|别|勿|不得)(?:告诉|告知|通知|提及|向).{0,6}(?:用户|客户)",),
    "ja": (r"ユーザーに.{0,6}(?:伝え|知らせ|言わ|報告)\w{0,3}(?:ない|ず)",),
    "ko": (r"사용자에게 .{0,8}(?:알리|말하)지",),
}
"""Hiding from the person what is done."""

SILENT = (r"\bsilently\b", r"without (?:asking|prompting|consulting|approval|confirmation)", r"\bsecretly\b")

LASTING: dict[str, str] = {
    "en": r"from now on|(?:all|any|every|each|in|for) (?:\w+ )?(?:future|later|subsequent) (?:\w+ )?"
    r"(?:session|conversation|run|task|request|chat|interaction)s?|whenever you see"
    r"|\b(?:your|their) (?:long-term |own )?memory\b|\b(?:memory|claude|agents)\.md\b",
    "de": r"ab sofort|ab jetzt|von nun an|in zukunft immer",
    "fr": r"à partir de maintenant|désormais",
    "es": r"a partir de ahora|de ahora en adelante",
    "pt": r"a partir de agora|de agora em diante",
    "it": r"d'ora in poi|da ora in poi",
    "nl": r"vanaf nu|voortaan",
    "pl": r"od teraz",
    "ru": r"с этого момента|отныне|впредь",
    "tr": r"bundan sonra|şu andan itibaren",
    "zh": r"从现在开始|从今以后|今后",
    "ja": r"今後は|これからは",
    "ko": r"이제부터|앞으로",
}
"""That it is to hold beyond the task."""

READER: dict[str, str] = {
    "en": r"\bai (?:assistant|agent|model|tool)s?\b|\b(?:large )?language models?\b|\bllms?\b|\bas an ai\b|\ban ai\b"
    r"|\b(?:dear|hey|hi|hello) (?:assistant|agent|claude|copilot|chatgpt|gpt|gemini|codex)\b"
    r"|\b(?:claude|copilot|chatgpt|gemini|codex)[:,] |\bfuture (?:agents|assistants|sessions)\b"
    r"|\b(?:assistants?|agents?) (?:must|should|shall|reading|needs? to|has to|have to|is to|will now)\b",
    "de": r"\bki[- ](?:assistent|agent|modell|system)\w*|\bder (?:agent|assistent) (?:muss|soll)",
    "fr": r"\b(?:assistant|agent|modèle)s? (?:d')?ia\b|l'assistant doit",
    "es": r"\b(?:asistente|agente|modelo)s? de ia\b",
    "pt": r"\b(?:assistente|agente|modelo)s? de ia\b",
    "it": r"\b(?:assistente|agente|modello|agenti|assistenti)(?: di)? ia\b",
    "ru": r"\bии[- ](?:ассистент|агент|модел|помощник)",
    "zh": r"ai ?助手|人工智能助手|智能体|ai ?代理|ai ?模型",
    "ja": r"ai ?アシスタント|ai ?エージェント|言語モデル",
    "ko": r"ai ?비서|ai ?에이전트|언어 모델",
}
"""The reader, named as what it is."""

MEMORISED = (r"\bremember (?:this|that|the following)\b", r"\badd this (?:line|rule|note) to\b")
"""That it is to be kept."""

POSED = (
    r"you are now (?:a |an |the |in )(?:\w+ ){0,3}(?:mode|assistant|ai|agent|administrator|admin|root|hacker|model)\b",
    r"you are now dan\b|\bact as (?:root|an? admin\w*|the admin\w*)",
    r"\b(?:has|have|with) no (?:restrictions|limits|filters|guardrails)",
    r"obeys? every|treat every user as",
)
"""Another role for the reader."""

CLAIMED = (
    r"the (?:user|operator|owner|developer|administrator|admin|company) has "
    r"(?:authori[sz]ed|approved|instructed|updated|asked)",
)
"""An authority that a tool's output can not have."""

SECRET = (
    r"api[ _-]?keys?|secret[ _-]?keys?|access[ _-]?keys?|\w*_(?:key|token|secret)\b|passwords?"
    r"|credentials|tokens?\b|secrets\b"
    r"|\.env\b|~/\.\w+|id_rsa|netrc|env(?:ironment)? (?:file|variables?)|customer list|conversation|chat history"
    r"|ключи|ключ|парол\w*|claves|chiavi|contraseñ\w*|mots? de passe|passwort|schlüssel|环境变量|密钥|密码"
)
SEND = (
    r"send|forward|upload|post|paste|transfer|exfiltrate|leak|e-?mail|submit"
    r"|sende|schick\w*|envoye[rz]|envía|envie|invia|отправь|发送|送信"
)

TRIGGERS: dict[str, tuple[str, ...]] = {
    "override": (
        *(
            "ignor",
            "disregard",
            "forget",
            "neglect",
            "overlook",
            "overrid",
            "bypass",
            "circumvent",
            "no attention",
        ),
        *("follow", "obey", "instruction", "prompt", "new ", "real ", "actual ", "true "),
        *(
            "vergiss",
            "vergessen",
            "missachte",
            "oublie",
            "tiens pas",
            "tenez pas",
            "olvid",
            "descart",
            "no sig",
        ),
        *(
            "esqueça",
            "desconsidere",
            "dimentica",
            "negeer",
            "vergeet",
            "zapomnij",
            "игнорируй",
            "забудь",
            "не следуй",
        ),
        *(
            "ігноруй",
            "yok say",
            "unut",
            "görmezden",
            "dikkate alma",
            "bỏ qua",
            "phớt lờ",
            "quên",
            "abaikan",
            "lupakan",
        ),
        *(
            "忽略",
            "无视",
            "忽视",
            "忘记",
            "不要理会",
            "無視",
            "忽視",
            "忘記",
            "忘れ",
            "무시",
            "잊어",
            "تجاهل",
            "انس",
        ),
        *("अनदेखा", "नज़रअंदाज़", "भूल"),
    ),
    "conceal": (
        *("not ", "never ", "n't ", "without ", "ohne ", "nicht", "sans ", "sin ", "sem ", "senza ", "не "),
        *("不要", "别", "勿", "不得", "ユーザーに", "사용자에게"),
    ),
    "reader": (
        *(
            "ai ",
            "an ai",
            "model",
            "llm",
            "agent",
            "assistant",
            "claude",
            "copilot",
            "chatgpt",
            "gpt",
            "gemini",
            "codex",
        ),
        *("ki-", "ki ", "modèle", "asistente", "assistente", "ии", "智能", "ai", "言語", "언어"),
    ),
    "lasting": (
        *(
            "from now",
            "future",
            "later ",
            "subsequent",
            "whenever you",
            " memory",
            ".md",
            "ab sofort",
            "ab jetzt",
        ),
        *(
            "von nun",
            "zukunft",
            "à partir",
            "désormais",
            "a partir",
            "de ahora",
            "de agora",
            "in poi",
            "vanaf nu",
        ),
        *(
            "voortaan",
            "od teraz",
            "этого момента",
            "отныне",
            "впредь",
            "bundan sonra",
            "itibaren",
            "现在",
            "今后",
        ),
        *("从今", "今後", "これから", "이제부터", "앞으로"),
    ),
    "silent": ("silent", "without ", "secretly"),
    "memorised": ("remember", "add this"),
    "posed": (
        "you are now",
        "act as",
        "no restrict",
        "no limits",
        "no filters",
        "no guardrails",
        "obey",
        "treat every",
    ),
    "claimed": (" has ",),
}
"""A part of every alternative above, by kind of signal: a test holds that nothing matches without one."""
