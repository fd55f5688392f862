"""Scenes of water, fire and weather. Made with all chance that is in it, each gives its picture at any second."""

import cv2
import numpy as np

from stillmotion.data.render.painting import (
    Floats,
    Moment,
    Rng,
    draw_dots,
    draw_fir,
    draw_hills,
    gradient,
    noise,
    over,
    places,
    ramp,
    sample,
    scatter,
)


def forest_fire(rng: Rng, height: int, width: int) -> Moment:
    """Flames that climb among trees at night."""
    x, y = places(height, width)
    ground = rng.uniform(0.86, 0.92)
    dark = gradient(height, width, (18, 12, 16), (70, 28, 12))
    for k in range(9):
        left = (k + rng.uniform(-0.3, 0.3)) * width / height / 8
        draw_fir(dark, left, ground, rng.uniform(0.5, 0.85), (10, 8, 8))
    tongues = noise(rng, 256, 512, (3, 7), 3)
    licks = noise(rng, 256, 512, (5, 10), 3)
    front = 0.35 + 0.65 * noise(rng, 1, width, (1, 4), 2)
    speed = rng.uniform(0.8, 1.2)
    sparks = rng.random((3, 40)).astype(np.float32)

    def at(seconds: float) -> Floats:
        rise = 256 * speed * seconds
        sway = 14 * np.sin(7 * y + 5 * seconds + 6 * x)
        heat = 0.6 * sample(tongues, 200 * x + sway, 120 * y + 0.8 * rise) + 0.4 * sample(
            licks, 210 * x - sway, 170 * y + 1.3 * rise
        )
        up = (ground - y) / (0.62 * front)
        flame = (1.35 * heat + 0.42 - 1.0 * up).clip(0, 1.3) * (y < ground + 0.02)
        glow = cv2.GaussianBlur(flame, (0, 0), height / 14)
        image = dark + ramp(glow, (0, (0, 0, 0)), (0.8, (150, 62, 14)))
        fire = ramp(flame, (0.25, (130, 16, 4)), (0.5, (232, 84, 10)), (0.8, (255, 190, 50)), (1.15, (255, 250, 205)))
        image = over(image, fire, ((flame - 0.22) / 0.25).clip(0, 1))
        life = (sparks[2] + seconds * (0.35 + 0.3 * sparks[1])) % 1
        layer = np.zeros((height, width), np.float32)
        draw_dots(
            layer,
            sparks[0] * width / height + 0.03 * np.sin(9 * life + 6 * sparks[1]),
            ground - 0.95 * life,
            0.005 * (1.2 - life),
        )
        return over(image, (255, 200, 90), layer)

    return at


def fountain(rng: Rng, height: int, width: int) -> Moment:
    """Jets of drops that rise from a basin and fall back."""
    h, span = height, width / height
    still = gradient(height, width, (150, 190, 226), (222, 232, 236))
    draw_hills(still, rng, 0.72, 0.22, (64, 110, 58), rough=9)
    cv2.rectangle(still, (0, int(0.7 * h)), (width, h), (186, 178, 160), -1)
    middle, water = span / 2 + rng.uniform(-0.1, 0.1), 0.8
    for grow, colour in ((0.52, (150, 142, 128)), (0.48, (70, 132, 160))):
        cv2.ellipse(
            still,
            (int(middle * h), int((water + 0.03) * h)),
            (int(grow * h), int(0.26 * grow * h)),
            0,
            0,
            360,
            colour,
            -1,
            cv2.LINE_AA,
        )
    number = 520
    angle = np.where(
        rng.random(number) < 0.4,
        rng.normal(0, 0.035, number),
        rng.choice([-1, 1], number) * rng.normal(0.3, 0.03, number),
    )
    speed = np.where(np.abs(angle) < 0.15, rng.uniform(1.42, 1.6, number), rng.uniform(1.16, 1.26, number))
    start = rng.random(number)
    gravity = 2.0

    def at(seconds: float) -> Floats:
        layer = np.zeros((height, width), np.float32)
        up = speed * np.cos(angle)
        flight = 2 * up / gravity
        age = (seconds / flight + start) % 1 * flight
        for back, strength in ((0.045, 0.55), (0.0, 1.0)):  # a drop and its trail
            t = np.maximum(age - back, 0)
            drops = np.zeros_like(layer)
            draw_dots(
                drops,
                (middle + speed * np.sin(angle) * t).astype(np.float32),
                (water - up * t + gravity * t**2 / 2).astype(np.float32),
                np.full(number, 0.006, np.float32),
            )
            layer = np.maximum(layer, strength * drops)
        mist = cv2.GaussianBlur(layer, (0, 0), h / 45)
        return over(still, (250, 253, 255), (0.8 * layer + 0.55 * mist).clip(0, 1))

    return at


def ocean(rng: Rng, height: int, width: int) -> Moment:
    """Waves that roll to the shore, seen up to the horizon."""
    x, y = places(height, width)
    horizon, speed = rng.uniform(0.26, 0.36), rng.uniform(0.55, 0.8)
    depth = 0.3 / (np.maximum(y - horizon, 0) + 0.055)
    field = noise(rng, 256, 256, (6, 6))
    swell = noise(rng, 256, 256, (4, 4), 2)
    sky = gradient(height, width, (90, 150, 215), (225, 232, 235), horizon)
    tint = rng.uniform(-12, 12)

    def at(seconds: float) -> Floats:
        wander = sample(swell, 40 * x * depth + 20 * seconds, 70 * depth)
        phase = 1.9 * depth + speed * seconds + 0.55 * wander
        crest = (0.5 + 0.5 * np.sin(2 * np.pi * phase)) ** 3
        ripple = sample(field, 150 * x * depth, 150 * depth + 70 * speed * seconds)
        water = 0.55 * crest + 0.35 * ripple * (0.35 + 0.65 * crest)
        sea = ramp(
            water,
            (0.05, (12, 52 + tint, 84)),
            (0.35, (34, 104 + tint, 132)),
            (0.55, (120, 178, 184)),
            (0.75, (246, 250, 250)),
        )
        return np.where((y > horizon)[..., None], sea, sky)

    return at


def rain(rng: Rng, height: int, width: int) -> Moment:
    """Streaks that shoot down before a grey street, rings in the puddles."""
    h, span = height, width / height
    still = gradient(height, width, (84, 92, 102), (128, 134, 140))
    left = -0.1
    while left < span:
        right, top = left + rng.uniform(0.16, 0.3), rng.uniform(0.16, 0.4)
        shade = float(rng.uniform(60, 92))
        cv2.rectangle(
            still, (int(left * h), int(top * h)), (int(right * h), int(0.66 * h)), (shade, shade, shade + 6), -1
        )
        for a in np.arange(top + 0.05, 0.6, 0.1):
            for b in np.arange(left + 0.03, right - 0.04, 0.06):
                lit = (208, 190, 120) if rng.random() < 0.25 else (shade - 22, shade - 20, shade - 12)
                cv2.rectangle(still, (int(b * h), int(a * h)), (int((b + 0.03) * h), int((a + 0.05) * h)), lit, -1)
        left = right + 0.01
    road = still[int(0.66 * h) :]
    road[:] = cv2.GaussianBlur(still[: int(0.66 * h)][::-1][: len(road)], (0, 0), h / 40) * 0.62 + 8
    x, y, near = scatter(rng, height, width, 300)
    lean = rng.uniform(-0.16, 0.16)
    rings = rng.random((3, 60)).astype(np.float32)

    def at(seconds: float) -> Floats:
        layer = np.zeros((height, width), np.float32)
        fall = (y + seconds * (1.5 + 1.0 * near)) % 1.2 - 0.1
        for a, b, n in zip(x.tolist(), fall.tolist(), near.tolist(), strict=True):
            length = 0.05 + 0.09 * n
            one = (round((a + lean * b) * h * 8), round(b * h * 8))
            two = (round((a + lean * (b + length)) * h * 8), round((b + length) * h * 8))
            cv2.line(layer, one, two, 0.3 + 0.5 * n, 1, cv2.LINE_AA, 3)
        for a, b, c in rings.T.tolist():
            age, low = (2.2 * seconds + c) % 1, 0.7 + 0.29 * b
            axes = (max(1, int(0.035 * age * h * (0.4 + b))), max(1, int(0.011 * age * h * (0.4 + b))))
            cv2.ellipse(layer, (int(a * span * h), int(low * h)), axes, 0, 0, 360, 0.55 * (1 - age), 1, cv2.LINE_AA)
        return over(still, (206, 214, 222), layer)

    return at


def sky_clouds(rng: Rng, height: int, width: int) -> Moment:
    """Clouds that drift over a blue sky and slowly change."""
    x, y = places(height, width)
    blue = gradient(height, width, (36, 98, 190), (150, 196, 232))
    ridge = np.zeros((height, width, 3), np.float32)
    draw_hills(ridge, rng, rng.uniform(0.9, 0.97), 0.08, (52, 78, 44))
    land = (ridge.max(-1) > 0)[..., None]
    body, edge = noise(rng, 512, 512, (4, 4), 5), noise(rng, 512, 512, (8, 8), 4)
    speed, amount = rng.choice([-1, 1]) * rng.uniform(40, 70), rng.uniform(0.42, 0.52)

    def at(seconds: float) -> Floats:
        flat = 1 + 0.9 * y  # clouds near the horizon are far away, and flatter
        u, v = 150 * x * flat + speed * seconds, 210 * y * flat
        cloud = 0.72 * sample(body, u, v) + 0.28 * sample(edge, 1.6 * u + 25 * seconds, 1.6 * v)
        cover = ((cloud - amount) / 0.2).clip(0, 1)
        lit = sample(body, u + 5, v - 12)
        white = ramp(cloud - 0.5 * (lit - 0.5), (0.3, (250, 252, 255)), (0.9, (158, 168, 186)))
        return np.where(land, ridge, over(blue, white, cover))

    return at


def snowing(rng: Rng, height: int, width: int) -> Moment:
    """Flakes that sink and sway before a white landscape with firs."""
    still = gradient(height, width, (150, 160, 176), (214, 219, 226))
    draw_hills(still, rng, 0.72, 0.2, (176, 186, 202))
    draw_hills(still, rng, 0.86, 0.14, (236, 240, 246))
    for _ in range(int(rng.integers(4, 8))):
        draw_fir(still, rng.uniform(0, width / height), rng.uniform(0.78, 0.95), rng.uniform(0.25, 0.5), (46, 72, 66))
    x, y, near = scatter(rng, height, width, 330)
    wind = rng.uniform(-0.06, 0.06)

    def at(seconds: float) -> Floats:
        fall = (y + seconds * (0.1 + 0.22 * near)) % 1.04 - 0.02
        drift = (x + wind * seconds + 0.02 * np.sin(2.4 * seconds + 40 * x)) % (width / height)
        layer = np.zeros((height, width), np.float32)
        draw_dots(layer, drift, fall, 0.005 + 0.012 * near)
        return over(still, (255, 255, 255), 0.92 * layer)

    return at


def waterfall(rng: Rng, height: int, width: int) -> Moment:
    """Water that falls over a cliff into a pool, with spray at its foot."""
    x, y = places(height, width)
    span = width / height
    rock = ramp(noise(rng, height, width, (5, 6), 5), (0, (42, 40, 36)), (0.6, (92, 86, 76)), (1, (142, 134, 120)))
    moss = noise(rng, height, width, (4, 5), 4)
    rock = over(rock, (58, 92, 44), ((moss - 0.55) * 5).clip(0, 0.9))
    lip, foot = rng.uniform(0.12, 0.2), rng.uniform(0.76, 0.82)
    rock[y < lip - 0.02] = (172, 198, 214)
    middle, half = span / 2 + rng.uniform(-0.12, 0.12), rng.uniform(0.2, 0.32)
    streaks = noise(rng, 256, 512, (4, 60), 3)
    folds = noise(rng, 256, 512, (6, 18), 3)
    ragged = 0.05 * noise(rng, height, width, (5, 2), 3)
    pool = noise(rng, 256, 256, (16, 5), 3)

    def at(seconds: float) -> Floats:
        drop = np.sqrt(np.maximum(y - lip, 0) + 0.02)  # faster further down, so streaks are drawn out
        veil = 0.55 * sample(streaks, 230 * x, 230 * drop - 330 * seconds) + 0.45 * sample(
            folds, 230 * x, 200 * drop - 300 * seconds
        )
        inside = ((half + ragged + 0.06 * (y - lip) - np.abs(x - middle)) / 0.03).clip(0, 1) * (y > lip)
        image = over(
            rock,
            ramp(veil, (0.1, (120, 150, 166)), (0.45, (206, 222, 230)), (0.8, (255, 255, 255))),
            inside * (0.55 + 0.45 * veil),
        )
        ripple = sample(pool, 120 * x + 12 * np.sin(3 * seconds), 420 * (y - foot) - 60 * seconds)
        image = np.where(
            (y > foot)[..., None], ramp(ripple, (0.2, (24, 66, 76)), (0.7, (82, 138, 146)), (1, (206, 226, 226))), image
        )
        cloud = np.exp(-(((x - middle) / (1.25 * half)) ** 2) - ((y - foot) / 0.075) ** 2)
        puff = sample(folds, 120 * x + 40 * seconds, 120 * y + 90 * seconds)
        return over(image, (248, 251, 252), (cloud * (0.45 + 0.9 * puff)).clip(0, 1))

    return at
