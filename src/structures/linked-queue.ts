/**
 * Linked queue: things that wait in a line, taken from either end, and out of its middle, in constant time.
 *
 * Promise: nothing is allocated, because what waits is its own link; the cost per node does not depend on how many wait.
 */

/** What a queue links: the waiting thing itself. Only the queue writes these fields. */
export interface QueueNode<Node> {
  previousInQueue: Node | undefined;
  nextInQueue: Node | undefined;
}

export class LinkedQueue<Node extends QueueNode<Node>> {
  size = 0;
  first: Node | undefined = undefined;
  last: Node | undefined = undefined;

  /** Adds a node that is in no queue. */
  add(node: Node): void {
    const { last } = this;
    node.previousInQueue = last;
    if (last === undefined) this.first = node;
    else last.nextInQueue = node;
    this.last = node;
    this.size++;
  }

  /** Takes out a node that is in this queue. */
  remove(node: Node): void {
    const { previousInQueue, nextInQueue } = node;
    if (previousInQueue === undefined) this.first = nextInQueue;
    else previousInQueue.nextInQueue = nextInQueue;
    if (nextInQueue === undefined) this.last = previousInQueue;
    else nextInQueue.previousInQueue = previousInQueue;
    node.previousInQueue = undefined;
    node.nextInQueue = undefined;
    this.size--;
  }
}
