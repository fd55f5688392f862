"""Scenes of traffic, chimneys, flags. Made with all chance that is in it, each gives its picture at any second."""

import cv2
import numpy as np

from stillmotion.data.render.painting import (
    Colour,
    Floats,
    Moment,
    Rng,
    draw_box,
    draw_dots,
    draw_hills,
    gradient,
    noise,
    over,
    places,
    ramp,
    sample,
)


def fireworks(rng: Rng, height: int, width: int) -> Moment:
    """Rockets that burst at night over a town."""
    h, span = height, width / height
    still = gradient(height, width, (6, 8, 24), (34, 26, 48))
    left = 0.0
    while left < span:
        right, top = left + rng.uniform(0.06, 0.16), rng.uniform(0.78, 0.92)
        cv2.rectangle(still, (int(left * h), int(top * h)), (int(right * h), h), (8, 8, 12), -1)
        for _ in range(5):
            spot = (int(rng.uniform(left, right) * h), int(rng.uniform(top + 0.02, 1.0) * h))
            cv2.rectangle(still, spot, (spot[0] + 1, spot[1] + 1), (220, 180, 90), -1)
        left = right
    paints = ((255, 90, 80), (120, 200, 255), (255, 220, 110), (150, 255, 150), (230, 140, 255), (255, 255, 255))
    bursts = []
    for k in range(7):
        angle, out = rng.uniform(0, 2 * np.pi, 70), np.sqrt(rng.random(70)) ** 0.5
        spread = rng.uniform(0.24, 0.36)
        place = (rng.uniform(0.15, 0.85) * span, rng.uniform(0.16, 0.46))
        start = k / 7 + rng.uniform(-0.05, 0.05)
        rays = (spread * out * np.cos(angle), spread * out * np.sin(angle))
        bursts.append((*place, start, *rays, paints[int(rng.integers(6))]))

    def at(seconds: float) -> Floats:
        image = still.copy()
        for x, y, start, dx, dy, paint in bursts:
            age = (seconds / 2.4 + start) % 1
            layer = np.zeros((height, width), np.float32)
            if age < 0.25:  # the rocket climbs
                for k in range(4):
                    way = max(0.0, age / 0.25 - 0.04 * k)
                    draw_dots(layer, np.array([x]), np.array([0.9 + (y - 0.9) * way]), np.array([0.008 - 0.0015 * k]))
            else:
                for back in (0.0, 0.03, 0.06):
                    t = max(0.0, (age - 0.25) / 0.75 - back)
                    grow = 1 - (1 - t) ** 3
                    drops = np.zeros_like(layer)
                    draw_dots(
                        drops,
                        (x + dx * grow).astype(np.float32),
                        (y + dy * grow + 0.16 * t**2).astype(np.float32),
                        np.full(len(dx), 0.006, np.float32),
                    )
                    layer = np.maximum(layer, drops * (1 - t) ** 0.8 * (1 - 8 * back))
            glow = cv2.GaussianBlur(layer, (0, 0), h / 40)
            image = image + np.array(paint, np.float32) * (layer + 0.8 * glow)[..., None]
        return image.clip(0, 255)

    return at


def highway(rng: Rng, height: int, width: int) -> Moment:
    """Cars on a motorway in perspective, one side coming, one going."""
    h, span = height, width / height
    horizon, centre = rng.uniform(0.34, 0.42), span / 2 + rng.uniform(-0.12, 0.12)
    still = gradient(height, width, (120, 168, 214), (214, 226, 234), horizon)
    cv2.rectangle(still, (0, int(horizon * h)), (width, h), (88, 122, 64), -1)
    draw_hills(still[: int(horizon * h) + 1], rng, 1.02, 0.14, (74, 104, 78))

    def place(lane: float, far: float) -> tuple[float, float, float]:
        """x, y and scale of a place on the road; `far` 0 at the camera, 1 on the horizon."""
        near = 0.08 / (0.08 + far)
        return centre + lane * 0.62 * near, horizon + (1.06 - horizon) * near, near

    def band(left: float, right: float, colour: Colour) -> None:
        corners = [place(left, 0)[:2], place(right, 0)[:2], place(right, 9)[:2], place(left, 9)[:2]]
        cv2.fillPoly(still, [(np.array(corners) * h).astype(np.int32)], colour, cv2.LINE_AA)

    band(-1.1, 1.1, (92, 94, 98))
    band(-0.06, 0.06, (96, 124, 70))
    for edge in (-1.06, -0.1, 0.1, 1.06):
        band(edge - 0.012, edge + 0.012, (236, 236, 228))
    cars = []
    for lane in (-0.83, -0.35, 0.35, 0.83):
        for k in range(4):
            paint = [
                float(v)
                for v in rng.choice(
                    [[196, 40, 36], [236, 236, 238], [40, 42, 48], [40, 84, 160], [150, 154, 160], [222, 180, 60]]
                )
            ]
            cars.append(
                (lane, k / 4 + rng.uniform(-0.07, 0.07), rng.uniform(0.26, 0.36), tuple(paint), rng.random() < 0.2)
            )

    def at(seconds: float) -> Floats:
        image = still.copy()
        for k in range(12):
            for lane in (-0.59, 0.59):
                far = 1.2 * ((k + 0.5) / 12) ** 2
                near, beyond = place(lane, far), place(lane, far + 0.012 + 0.06 * far)
                cv2.line(
                    image,
                    (round(near[0] * h), round(near[1] * h)),
                    (round(beyond[0] * h), round(beyond[1] * h)),
                    (236, 236, 228),
                    max(1, round(0.012 * near[2] * h)),
                    cv2.LINE_AA,
                )
        moved = [
            (lane, (start + (speed if lane > 0 else -speed) * seconds) % 1, paint, lorry)
            for lane, start, speed, paint, lorry in cars
        ]
        for lane, way, paint, lorry in sorted(moved, key=lambda car: -car[1]):
            x, y, scale = place(lane, 1.6 * way**2 - 0.01)
            wide, tall = 0.17 * scale, (0.27 if lorry else 0.13) * scale
            draw_box(image, x - wide, y - 0.015 * scale, x + wide, y + 0.02 * scale, (40, 42, 44))
            draw_box(image, x - wide, y - tall * 0.62, x + wide, y, paint)
            draw_box(image, x - 0.78 * wide, y - tall * 1.25, x + 0.78 * wide, y - tall * 0.6, paint)
            draw_box(image, x - 0.66 * wide, y - tall * 1.12, x + 0.66 * wide, y - tall * 0.66, (60, 76, 92))
            lamps = (230, 30, 24) if lane > 0 else (255, 248, 200)
            for side in (-1, 1):
                draw_box(
                    image,
                    x + side * 0.8 * wide - 0.15 * wide,
                    y - tall * 0.42,
                    x + side * 0.8 * wide + 0.15 * wide,
                    y - tall * 0.22,
                    lamps,
                )
        return image

    return at


def smoke(rng: Rng, height: int, width: int) -> Moment:
    """Smoke that billows out of chimneys."""
    h, span = height, width / height
    still = gradient(height, width, (120, 160, 200), (226, 214, 196))
    draw_hills(still, rng, 0.84, 0.1, (112, 118, 104))
    roof = 0.78
    cv2.rectangle(still, (int(0.1 * span * h), int(roof * h)), (int(0.9 * span * h), h), (96, 70, 62), -1)
    mouths = []
    for k in range(int(rng.integers(2, 4))):
        middle, top = (0.22 + 0.27 * k) * span + rng.uniform(-0.04, 0.04), rng.uniform(0.48, 0.58)
        corners = np.array([[middle - 0.05, roof], [middle + 0.05, roof], [middle + 0.035, top], [middle - 0.035, top]])
        cv2.fillPoly(still, [(corners * h).astype(np.int32)], (132, 62, 50), cv2.LINE_AA)
        mouths.append((middle, top))
    for a in np.arange(0.14 * span, 0.86 * span, 0.1):
        cv2.rectangle(still, (int(a * h), int(0.84 * h)), (int((a + 0.05) * h), int(0.9 * h)), (50, 56, 66), -1)
    wind = rng.choice([-1, 1]) * rng.uniform(0.12, 0.3)
    grey = float(rng.uniform(50, 95))
    puffs = rng.random((3, 44)).astype(np.float32)
    lumps = noise(rng, 256, 256, (8, 8), 3)
    x, y = places(height, width)

    def at(seconds: float) -> Floats:
        layer = np.zeros((height, width), np.float32)
        for middle, top in mouths:
            for a, b, c in puffs.T.tolist():
                age = (0.42 * seconds + a) % 1
                where = (middle + wind * age**1.5 + 0.05 * (b - 0.5) * (0.3 + age), top - 0.62 * age + 0.02 * c)
                disc = np.zeros_like(layer)
                cv2.circle(
                    disc,
                    (round(where[0] * h), round(where[1] * h)),
                    max(2, round(h * (0.035 + 0.12 * age))),
                    0.55 * (1 - age) ** 0.7,
                    -1,
                    cv2.LINE_AA,
                )
                layer = layer + disc - layer * disc
        soft: Floats = cv2.GaussianBlur(layer, (0, 0), h / 60)
        lump = sample(lumps, 200 * x - 200 * wind * seconds, 200 * y + 60 * seconds)
        cover = (soft * (0.7 + 0.6 * lump)).clip(0, 1)
        return over(still, ramp(lump, (0, (grey, grey, grey)), (1, (grey + 80, grey + 80, grey + 82))), cover)

    return at


def waving_flags(rng: Rng, height: int, width: int) -> Moment:
    """A flag on a pole in the wind."""
    h, span = height, width / height
    still = gradient(height, width, (70, 128, 204), (196, 220, 238))
    clouds = noise(rng, height, width, (3, 4), 5)
    still = over(still, (248, 250, 252), ((clouds - 0.6) * 2.5).clip(0, 0.8))
    pole = 0.18 * span + rng.uniform(-0.04, 0.04)
    top, tall, long = rng.uniform(0.12, 0.2), rng.uniform(0.4, 0.5), 0.62 * span
    paints = rng.permutation(
        [[206, 36, 44], [250, 250, 248], [26, 66, 150], [244, 196, 40], [30, 120, 62], [36, 36, 40]]
    )[:3]
    upright = rng.random() < 0.5
    x, y = places(height, width)
    rate, waves = rng.uniform(1.1, 1.6), rng.uniform(1.3, 1.9)

    def at(seconds: float) -> Floats:
        along = (x - pole) / long
        phase = 2 * np.pi * (waves * along - rate * seconds)
        lift = along.clip(0, 1) * 0.075
        bend = np.sin(phase) + 0.35 * np.sin(1.7 * phase + 1.0)
        down = (y - top - 0.06 * along - lift * bend) / tall
        edge = 1 + 0.03 * np.sin(phase * 0.6)
        inside = (along > 0) & (along < edge) & (down > 0) & (down < 1)
        stripe = ((along if upright else down) * 3).clip(0, 2.99).astype(int)
        cloth = paints[stripe] * (0.82 + 0.26 * along.clip(0, 1) ** 0.5 * np.cos(phase + 0.5))[..., None]
        opacity = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 0.8)
        image = over(still, cloth.astype(np.float32), opacity)
        draw_box(image, pole - 0.018, top - 0.05, pole, 1.0, (150, 150, 156))
        cv2.circle(
            image,
            (round((pole - 0.009) * h), round((top - 0.06) * h)),
            round(0.022 * h),
            (220, 180, 60),
            -1,
            cv2.LINE_AA,
        )
        return image

    return at


def windmill_farm(rng: Rng, height: int, width: int) -> Moment:
    """Wind turbines that turn on hills."""
    h, span = height, width / height
    still = gradient(height, width, (108, 166, 222), (226, 236, 240))
    draw_hills(still, rng, 0.8, 0.14, (122, 160, 104))
    draw_hills(still, rng, 0.95, 0.14, (84, 134, 64))
    mills = []
    for k, size in enumerate(sorted(rng.uniform(0.5, 1.0, 4))):
        place = (((2, 0, 3, 1)[k] + 0.5) / 4 * span + rng.uniform(-0.05, 0.05), 0.78 + 0.12 * size)
        mills.append((*place, size, rng.uniform(0, 360), rng.uniform(95, 130)))

    def at(seconds: float) -> Floats:
        image = still.copy()
        for x, foot, size, start, speed in mills:
            hub = np.array([x, foot - 0.52 * size])
            tower = np.array(
                [
                    [x - 0.016 * size, foot],
                    [x + 0.016 * size, foot],
                    [x + 0.008 * size, hub[1]],
                    [x - 0.008 * size, hub[1]],
                ]
            )
            cv2.fillPoly(image, [(tower * h * 8).astype(np.int32)], (206, 210, 214), cv2.LINE_AA, 3)
            for k in range(3):
                turn = np.deg2rad(start + speed * seconds + 120 * k)
                out, side = np.array([np.sin(turn), -np.cos(turn)]), np.array([np.cos(turn), np.sin(turn)])
                blade = [
                    hub - 0.01 * size * side,
                    hub + 0.1 * size * out + 0.026 * size * side,
                    hub + 0.33 * size * out,
                    hub + 0.01 * size * side,
                ]
                cv2.fillPoly(image, [(np.array(blade) * h * 8).astype(np.int32)], (252, 252, 252), cv2.LINE_AA, 3)
            cv2.circle(
                image,
                (round(hub[0] * h), round(hub[1] * h)),
                max(1, round(0.018 * size * h)),
                (186, 190, 196),
                -1,
                cv2.LINE_AA,
            )
        return image

    return at
