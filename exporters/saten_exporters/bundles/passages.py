"""A small English text to judge by where no other is given: passages of prose on different subjects."""

from __future__ import annotations

__all__ = ["PASSAGES"]

PASSAGES = (
    "The harbour lies on the northern side of the island. Fishing boats leave before sunrise and come back around "
    "noon, when the wind turns. In the nineteenth century the town lived on salt, which was shipped to the "
    "mainland in flat wooden barges. Today most of its four thousand people work in hotels, but the old "
    "warehouses along the quay are still standing, and one of them is now a museum of navigation.",
    "A battery stores energy in two materials that want to exchange electrons. While it is used, the electrons "
    "travel through a wire outside, and charged atoms move inside to balance them. Charging pushes both back. "
    "Every cycle leaves a thin layer of waste on the electrodes, so that after some hundred cycles the battery "
    "holds noticeably less than it did when it was new.",
    'She closed the door and listened. Nobody was on the stairs. "You could have called me," said a voice from '
    "the kitchen. It was her brother, who had not been home for three years. He was sitting at the table as if "
    'nothing had happened, drinking tea from the blue cup. "I did call," she answered. "You had a different '
    'number by then."',
    "To sort a list of numbers, split it into two halves, sort each of them in the same way, and merge the "
    "results. Merging is easy: compare the first number of both halves, take the smaller one, and repeat until "
    "both are empty. A list of one number is sorted already. The number of steps grows only a little faster than "
    "the length of the list, which is why this method is still used for data that does not fit into memory.",
    "The committee met on 14 March 1987 and approved a budget of 2.6 million dollars for the new bridge. "
    "Construction was expected to take eighteen months. However, heavy rain in the following spring delayed the "
    "work on the foundations, and the bridge was not opened until September 1989. It carries about 12,000 "
    "vehicles a day and was repaired in 2004.",
    "Heat the oil in a large pan and fry the onions for five minutes until they are soft. Add the garlic, the "
    "tomatoes and a teaspoon of salt, then cover the pan and let it simmer over a low flame for half an hour. "
    "Meanwhile, boil the rice in plenty of water. Serve the sauce over the rice with fresh parsley and a slice of "
    "lemon.",
    "I bought this camera for a trip to the mountains and was disappointed at first: the menu is confusing and "
    "the manual is of little help. After a week I would not give it away. The pictures are sharp even in poor "
    "light, the battery lasts for two days, and it survived a fall onto rocks without a scratch. The strap, "
    "however, broke almost at once.",
    "Owls hunt at night, and they find their prey mostly by ear. The feathers of the face form a shallow dish "
    "that leads sound to the ears, one of which sits a little higher than the other. From the tiny difference "
    "between the two, the bird can tell how high and how far to the side a mouse is moving under the leaves. Soft "
    "edges on the wings make its flight almost silent.",
)
